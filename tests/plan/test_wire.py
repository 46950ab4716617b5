"""The keys from the API to the engine: they are encoded, decoded, and refused if they do not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from duet_server.plan import (
    CompressionSettings,
    PromptLayout,
    RequestPlan,
    SegmentPlan,
    SettingsError,
    Span,
    off_settings,
    presets,
)
from duet_server.plan.wire import (
    NO_STAGE1,
    Stage1Counts,
    decode_plan,
    decode_stage1,
    encode_extra_args,
    encode_processor_kwargs,
)
from tests.golden_cases import GoldenCase, golden_cases
from tests.plan.shapes import LLAVA_7B

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
        ({"duet_guide": "all", "duet_salient": [1]}, (10, 11, 12, 18, 19)),
        ({"duet_guide": "last"}, (19,)),
        ({"duet_guide": "salient", "duet_salient": [18, 0, 11, 11]}, (11, 18, 19)),
        ({"duet_guide": "salient", "duet_salient": []}, (19,)),
        ({"duet_guide": "salient"}, (19,)),
    ],
    ids=["default", "all", "last", "salient", "no salient word", "salient words left out"],
)
def test_the_decoded_plan_has_the_segments_worked_out_by_hand(extra_args: dict, guiding: tuple[int, ...]):
    assert decode_plan({"duet_keep": KEEP, **extra_args}, 20, SPANS, 2) == expected_plan(*guiding)


@pytest.mark.parametrize(
    ("spans", "extra_args"),
    [
        (SPANS, {}),
        (SPANS, {"duet_guide": "last", "duet_salient": [19]}),
        (SPANS, {"duet_keep": [1.0, 1]}),
        ([], {"duet_keep": KEEP}),
    ],
    ids=["no settings", "no keeps", "keeps of one", "no images"],
)
def test_nothing_to_drop_is_no_plan(spans: list[tuple[int, int]], extra_args: dict):
    assert decode_plan(extra_args, 20, spans, 2) is None


def test_a_keep_that_rounds_to_every_token_is_no_plan():
    assert decode_plan({"duet_keep": [1.0]}, 5, [(1, 2)], 1) is None
    plan = decode_plan({"duet_keep": [0.99]}, 5, [(1, 2)], 1)

    assert plan is not None  # floor(0.99) of one token is 0 tokens
    assert plan.segments[1].num_tokens == 4


def test_arguments_are_not_modified():
    spans, extra_args = list(SPANS), {"duet_keep": [0.5, 0.5], "duet_guide": "salient", "duet_salient": [18, 11]}
    first = decode_plan(extra_args, 20, spans, 2)

    assert spans == SPANS
    assert extra_args == {"duet_keep": [0.5, 0.5], "duet_guide": "salient", "duet_salient": [18, 11]}
    assert decode_plan(extra_args, 20, tuple(spans[::-1]), 2) == first


@pytest.mark.parametrize(
    "keep",
    [
        *([], [0.5], [0.5, 0.2, 0.1], [0.2, 0.5], [1.5, 0.5], [0.5, -0.1], [math.nan, 0.5], [0.5, math.nan]),
        *(["1", "0"], 0.5, "ab", {"a": 1, "b": 0}, {0.5, 0.2}),
    ],
    ids=repr,
)
def test_keeps_that_cannot_be_served_are_refused(keep: object):
    with pytest.raises(SettingsError) as error:
        decode_plan({"duet_keep": keep}, 20, SPANS, 2)

    assert error.value.field == "duet_keep"
    assert error.value.value is keep


@pytest.mark.parametrize(
    ("text", "guide", "message"),
    [
        ("salient", [20], "row 20 is outside the prompt"),
        ("salient", [-1], "row -1 is outside the prompt"),
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
def test_guiding_rows_that_cannot_be_served_are_refused(text: object, guide: object, message: str):
    with pytest.raises(SettingsError, match=message):
        decode_plan({"duet_keep": KEEP, "duet_guide": text, "duet_salient": guide}, 20, SPANS, 2)


def test_a_prompt_that_ends_on_an_image_cannot_drop_tokens():
    with pytest.raises(SettingsError, match="text after the last image"):
        decode_plan({"duet_keep": [0.5, 0.0]}, 10, [(4, 10)], 2)
    assert decode_plan({"duet_keep": [1.0, 1.0]}, 10, [(4, 10)], 2) is None


def test_a_plan_carries_its_trace():
    extra_args = {"duet_keep": KEEP, "duet_trace": 7}
    assert decode_plan(extra_args, 20, SPANS, 2) == replace(expected_plan(10, 11, 12, 18, 19), trace_id=7)


@pytest.mark.parametrize("case", golden_cases(), ids=str)
def test_golden_lengths(case: GoldenCase):
    span = case.image_start, case.image_start + case.num_entering
    extra_args = {"duet_keep": case.keep, "duet_guide": "salient", "duet_salient": case.guiding_rows}
    plan = decode_plan(extra_args, case.prefill_len, [span], len(case.boundaries))
    edges = [0, *case.boundaries, len(case.kv_lens_per_layer)]
    held = [case.kv_lens_per_layer[start] for start in edges[:-1]]

    if held == [case.prefill_len] * len(held):
        assert plan is None
    else:
        assert plan is not None
        assert [segment.num_tokens for segment in plan.segments] == held
        assert list(plan.guiding_rows) == case.guiding_rows


@pytest.mark.parametrize("name", list(presets(LLAVA_7B)))
@pytest.mark.parametrize("trace_id", [0, 1, 2**63 - 1])
def test_stage1_is_decoded_as_it_was_encoded(name: str, trace_id: int):
    settings = presets(LLAVA_7B)[name]
    kwargs = encode_processor_kwargs(settings, trace_id)
    counts = decode_stage1(kwargs, 576)

    assert kwargs.get("duet_trace", 0) == trace_id
    if settings.dominant is None:
        assert counts == NO_STAGE1
    else:
        assert counts == (settings.dominant, settings.contextual, settings.cluster_width or 0)
        assert counts.num_entering == settings.num_entering(576)


def test_an_uncompressed_request_carries_nothing():
    assert encode_processor_kwargs(None) == encode_processor_kwargs(off_settings(LLAVA_7B)) == {}


@pytest.mark.parametrize(
    ("guide", "guiding"), [("all", (10, 11, 12, 18, 19)), ("salient", (11, 18, 19)), ("last", (19,))]
)
@pytest.mark.parametrize("trace_id", [0, 7])
def test_a_plan_is_decoded_as_it_was_encoded(guide: str, guiding: tuple[int, ...], trace_id: int):
    settings = CompressionSettings(None, 0, None, (0.5, 0.2), guide, "custom")
    args = encode_extra_args(settings, [11, 18], trace_id)
    assert decode_plan(args, 20, SPANS, 2) == replace(expected_plan(*guiding), trace_id=trace_id)


@pytest.mark.parametrize("counts", [[1, 0, 0], [577, 0, 4], [1, 576, 4], (72, 30, 4)], ids=repr)
def test_counts_that_fit_are_accepted(counts: object):
    assert decode_stage1({"duet_stage1": counts}, 576) == Stage1Counts(*counts)


@pytest.mark.parametrize(
    "counts",
    [
        *([0, 0, 0], [0, 5, 4], [1, -1, 4], [1, 1, -1], [578, 0, 4], [2, 576, 4]),
        *([1, 2], [1, 2, 3, 4], [1.0, 2, 3], [True, 1, 1], "abc", None, {}),
    ],
    ids=repr,
)
def test_counts_that_cannot_be_served_are_refused(counts: object):
    with pytest.raises(SettingsError, match=r"^duet_stage1 is .*, expected .*dominant - 1 \+ contextual at most 576"):
        decode_stage1({"duet_stage1": counts}, 576)
