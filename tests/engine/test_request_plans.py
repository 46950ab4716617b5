"""From a request's `extra_args` to its plan, and the state that remembers it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from duet_server.engine.request_plans import RequestPlans, plan_request
from duet_server.plan import PromptLayout, RequestPlan, SegmentPlan, SettingsError, Span
from tests.golden_cases import GoldenCase, golden_cases

# Prompt of 20 rows: text 0-1, two images of 4 side by side 2-9, text 10-12, an image of 5 13-17, text 18-19.
SPANS = [(13, 18), (2, 6), (6, 10)]
POOLS = (Span(2, 10), Span(13, 18))
KEEP = [0.5, 0.2]
AFTER = (
    SegmentPlan(20, 0, POOLS),
    SegmentPlan(13, 7, (Span(2, 6), Span(9, 11))),  # 4 of 8, 2 of 5
    SegmentPlan(9, 11, (Span(2, 3), Span(6, 7))),  # 1 of 8, 1 of 5
)


def expected_plan(*guiding: int) -> RequestPlan:
    return RequestPlan(PromptLayout(20, POOLS), guiding, AFTER)


@pytest.mark.parametrize(
    ("extra_args", "guiding"),
    [
        ({}, (10, 11, 12, 18, 19)),
        ({"duet_text": "all", "duet_guide": [1]}, (10, 11, 12, 18, 19)),
        ({"duet_text": "last"}, (19,)),
        ({"duet_text": "salient", "duet_guide": [18, 0, 11, 11]}, (11, 18, 19)),
        ({"duet_text": "salient", "duet_guide": []}, (19,)),
        ({"duet_text": "salient"}, (19,)),
    ],
    ids=["default", "all", "last", "salient", "no salient word", "salient words left out"],
)
def test_plan(extra_args: dict, guiding: tuple[int, ...]):
    assert plan_request(20, SPANS, {"duet_keep": KEEP, **extra_args}, 2) == expected_plan(*guiding)


@pytest.mark.parametrize(
    ("spans", "extra_args"),
    [
        (SPANS, {}),
        (SPANS, {"duet_text": "last", "duet_guide": [19]}),
        (SPANS, {"duet_keep": [1.0, 1]}),
        ([], {"duet_keep": KEEP}),
    ],
    ids=["no settings", "no keeps", "keeps of one", "no images"],
)
def test_nothing_to_drop_is_no_plan(spans: list[tuple[int, int]], extra_args: dict):
    assert plan_request(20, spans, extra_args, 2) is None


def test_a_keep_that_rounds_to_every_token_is_no_plan():
    assert plan_request(5, [(1, 2)], {"duet_keep": [1.0]}, 1) is None
    plan = plan_request(5, [(1, 2)], {"duet_keep": [0.99]}, 1)

    assert plan is not None  # floor(0.99) of one token is none
    assert plan.segments[1].num_tokens == 4


def test_arguments_are_not_modified():
    spans, extra_args = list(SPANS), {"duet_keep": [0.5, 0.5], "duet_text": "salient", "duet_guide": [18, 11]}
    first = plan_request(20, spans, extra_args, 2)

    assert spans == SPANS
    assert extra_args == {"duet_keep": [0.5, 0.5], "duet_text": "salient", "duet_guide": [18, 11]}
    assert plan_request(20, tuple(spans[::-1]), extra_args, 2) == first


@pytest.mark.parametrize(
    "keep",
    [
        *([], [0.5], [0.5, 0.2, 0.1], [0.2, 0.5], [1.5, 0.5], [0.5, -0.1], [math.nan, 0.5], [0.5, math.nan]),
        *(["1", "0"], 0.5, "ab", {"a": 1, "b": 0}, {0.5, 0.2}),
    ],
    ids=repr,
)
def test_keeps_that_cannot_be_served(keep: object):
    with pytest.raises(SettingsError) as error:
        plan_request(20, SPANS, {"duet_keep": keep}, 2)

    assert error.value.field == "duet_keep"
    assert error.value.value is keep


@pytest.mark.parametrize(
    ("text", "guide", "message"),
    [
        ("salient", [20], "row 20 leaves the prompt"),
        ("salient", [-1], "row -1 leaves the prompt"),
        ("salient", [11, 13], "row 13 is a visual token"),
        ("salient", None, "expected a list of prompt rows"),
        ("salient", 11, "expected a list of prompt rows"),
        ("salient", ["11"], "expected a list of prompt rows"),
        ("salient", [11.7], "expected a list of prompt rows"),
        ("some", [11], "expected one of all, salient, last"),
        (["all"], [11], "expected one of all, salient, last"),
    ],
    ids=repr,
)
def test_guiding_rows_that_cannot_be_served(text: object, guide: object, message: str):
    with pytest.raises(SettingsError, match=message):
        plan_request(20, SPANS, {"duet_keep": KEEP, "duet_text": text, "duet_guide": guide}, 2)


def test_a_prompt_that_ends_on_an_image_cannot_drop_tokens():
    with pytest.raises(SettingsError, match="text after the last image"):
        plan_request(10, [(4, 10)], {"duet_keep": [0.5, 0.0]}, 2)
    assert plan_request(10, [(4, 10)], {"duet_keep": [1.0, 1.0]}, 2) is None


# What vLLM hands over, as far as plans read it.
IMAGES = [SimpleNamespace(mm_position=SimpleNamespace(offset=start, length=end - start)) for start, end in SPANS]


def sampling(**extra_args: object) -> SimpleNamespace:
    return SimpleNamespace(extra_args=extra_args or None)


def test_requests_are_added_and_removed():
    plans = RequestPlans(num_boundaries=2)
    plans.add("drops", 20, IMAGES, sampling(duet_keep=KEEP))
    plans.add("keeps", 20, IMAGES, sampling(duet_keep=[1.0, 1.0]))
    plans.add("off", 20, IMAGES, sampling())
    plans.add("pooling", 20, IMAGES, None)

    assert plans.get("drops") == expected_plan(10, 11, 12, 18, 19)
    assert all(request in plans and plans.get(request) is None for request in ("keeps", "off", "pooling"))
    assert [plans.dropped("drops", segment_idx) for segment_idx in range(3)] == [0, 7, 11]
    assert [plans.dropped(request, 2) for request in ("keeps", "off", "never added")] == [0, 0, 0]

    for request in ("drops", "drops", "never added"):
        plans.remove(request)
    assert "drops" not in plans
    assert plans.get("drops") is None
    assert plans.dropped("drops", 2) == 0
    assert "keeps" in plans


def test_a_refused_request_is_not_remembered():
    plans = RequestPlans(num_boundaries=2)
    with pytest.raises(SettingsError):
        plans.add("refused", 20, IMAGES, sampling(duet_keep=[0.5]))

    assert "refused" not in plans


def test_a_plan_carries_its_trace():
    extra_args = {"duet_keep": KEEP, "duet_trace": 7}
    assert plan_request(20, SPANS, extra_args, 2) == replace(expected_plan(10, 11, 12, 18, 19), trace_id=7)


@pytest.mark.parametrize("case", golden_cases(), ids=str)
def test_golden_lengths(case: GoldenCase):
    span = case.image_start, case.image_start + case.num_entering
    extra_args = {"duet_keep": case.keep, "duet_text": "salient", "duet_guide": case.guiding_rows}
    plan = plan_request(case.prefill_len, [span], extra_args, len(case.boundaries))
    edges = [0, *case.boundaries, len(case.kv_lens_per_layer)]
    held = [case.kv_lens_per_layer[start] for start in edges[:-1]]

    if held == [case.prefill_len] * len(held):
        assert plan is None
    else:
        assert plan is not None
        assert [segment.num_tokens for segment in plan.segments] == held
        assert list(plan.guiding) == case.guiding_rows
