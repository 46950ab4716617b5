"""The keys from the API to the engine: they are encoded, decoded, and refused if they do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import (
    ModelShape,
    PromptLayout,
    RequestPlan,
    SegmentPlan,
    SettingsError,
    Span,
    Stage1Rule,
    Unit,
    VisualRows,
    cut_units,
    guiding_rows,
    off_settings,
    plan_prompt,
    presets,
    resolve_settings,
)
from duet_server.plan.wire import (
    decode_plan,
    decode_rule,
    encode_extra_args,
    encode_processor_kwargs,
    stage1_rule,
)
from tests.golden_cases import GoldenCase, golden_cases
from tests.held_counts import dropping_args
from tests.plan.prompts import ANY_SIZE, Prompt, any_size, grids, prompts, requests, variable_shapes
from tests.plan.shapes import LLAVA_7B

# Prompt of 20 rows: text 0-1, two images of 4 side by side 2-9, text 10-12, an image of 5 13-17, text 18-19.
SPANS = [(13, 18), (2, 6), (6, 10)]
POOLS = (Span(2, 10), Span(13, 18))
VISUAL = VisualRows(SPANS, [])
HELD = [8, 5, 4, 2, 1, 1]  # a half and a fifth of each pool
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
    assert decode_plan({"duet_held": HELD, **extra_args}, 20, VISUAL, 2) == expected_plan(*guiding)


@pytest.mark.parametrize(
    ("spans", "extra_args"),
    [
        (SPANS, {}),
        (SPANS, {"duet_guide": "last", "duet_salient": [19]}),
        (SPANS, {"duet_held": [8, 5] * 3}),
        ([], {"duet_held": HELD}),
    ],
    ids=["no settings", "no counts", "all rows", "no images"],
)
def test_nothing_to_drop_is_no_plan(spans: list[tuple[int, int]], extra_args: dict):
    assert decode_plan(extra_args, 20, VisualRows(spans, []), 2) is None


def test_arguments_are_not_modified():
    spans, extra_args = list(SPANS), {"duet_held": list(HELD), "duet_guide": "salient", "duet_salient": [18, 11]}
    first = decode_plan(extra_args, 20, VisualRows(spans, []), 2)

    assert spans == SPANS
    assert extra_args == {"duet_held": HELD, "duet_guide": "salient", "duet_salient": [18, 11]}
    assert decode_plan(extra_args, 20, VisualRows(spans[::-1], []), 2) == first


@pytest.mark.parametrize(
    "held",
    [
        *([], [8, 5], [8, 5, 4, 2], [8, 5, 4, 2, 1, 1, 0], [8, 5, 4, 2, 5, 1], [7, 5, 4, 2, 1, 1], [9, 5, 4, 2, 1, 1]),
        *([8, 5, 4, 2, -1, 1], [8, 5, 4, 2, 1.0, 1], [8, 5, 4, 2, True, 1], [8, 5, 4, 2, math.nan, 1]),
        *(["8", "5", "4", "2", "1", "1"], 8, "850000", {8: 5}, {8, 5, 4}),
    ],
    ids=repr,
)
def test_counts_that_cannot_be_served_are_refused(held: object):
    with pytest.raises(SettingsError) as error:
        decode_plan({"duet_held": held}, 20, VISUAL, 2)

    assert error.value.field == "duet_held"
    assert error.value.value is held


def test_structure_is_never_dropped():
    visual = VisualRows(SPANS, [6, 15])
    plan = decode_plan({"duet_held": [8, 5, 4, 2, 1, 1]}, 20, visual, 2)
    assert [segment.num_visual_tokens for segment in plan.segments] == [11, 4, 0]
    assert plan.layout.num_text_tokens == 9  # structure included
    with pytest.raises(SettingsError, match="counts from 5 to 1 that never rise"):
        decode_plan({"duet_held": [8, 5, 4, 2, 1, 0]}, 20, visual, 2)


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
        decode_plan({"duet_held": HELD, "duet_guide": text, "duet_salient": guide}, 20, VISUAL, 2)


def test_a_prompt_that_ends_on_an_image_cannot_drop_tokens():
    with pytest.raises(SettingsError, match="text after the last image"):
        decode_plan({"duet_held": [6, 3, 0]}, 10, VisualRows([(4, 10)], []), 2)
    assert decode_plan({"duet_held": [6, 6, 6]}, 10, VisualRows([(4, 10)], []), 2) is None


def test_a_plan_carries_its_trace():
    extra_args = {"duet_held": HELD, "duet_trace": 7}
    assert decode_plan(extra_args, 20, VISUAL, 2) == replace(expected_plan(10, 11, 12, 18, 19), trace_id=7)


@pytest.mark.parametrize("case", golden_cases(), ids=str)
def test_golden_lengths(case: GoldenCase):
    span = case.image_start, case.image_start + case.num_entering
    extra_args = dropping_args(case.prefill_len, [span], case.keep, "salient", case.guiding_rows)
    plan = decode_plan(extra_args, case.prefill_len, VisualRows([span], []), len(case.boundaries))
    edges = [0, *case.boundaries, len(case.kv_lens_per_layer)]
    held = [case.kv_lens_per_layer[start] for start in edges[:-1]]

    if held == [case.prefill_len] * len(held):
        assert plan is None
    else:
        assert plan is not None
        assert [segment.num_tokens for segment in plan.segments] == held
        assert list(plan.guiding_rows) == case.guiding_rows


@pytest.mark.parametrize(
    ("guide", "guiding"), [("all", (10, 11, 12, 18, 19)), ("salient", (11, 18, 19)), ("last", (19,))]
)
@pytest.mark.parametrize("trace_id", [0, 7])
def test_a_plan_is_decoded_as_it_was_encoded(guide: str, guiding: tuple[int, ...], trace_id: int):
    args = encode_extra_args(expected_plan(), guide, [11, 18], trace_id)
    assert args["duet_held"] == HELD
    assert decode_plan(json.loads(json.dumps(args)), 20, VISUAL, 2) == replace(
        expected_plan(*guiding), trace_id=trace_id
    )


def test_an_uncompressed_request_carries_nothing():
    assert encode_processor_kwargs(None, LLAVA_7B) == {}
    assert encode_processor_kwargs(off_settings(LLAVA_7B), LLAVA_7B) == {}


@pytest.mark.parametrize("name", list(presets(LLAVA_7B)))
@pytest.mark.parametrize("shape", [LLAVA_7B, any_size(LLAVA_7B)], ids=["one size", "any size"])
@pytest.mark.parametrize("trace_id", [0, 1, 2**63 - 1])
def test_a_rule_is_decoded_as_it_was_encoded(shape: ModelShape, name: str, trace_id: int):
    """As shares or as counts, a preset gives an image of the usual size the same counts."""
    kwargs = json.loads(json.dumps(encode_processor_kwargs(presets(shape)[name], shape, trace_id)))
    assert kwargs.get("duet_trace", 0) == trace_id
    (unit,) = cut_units(decode_rule(kwargs), [(24, 24)], has_cls=True)
    settings = presets(LLAVA_7B)[name]
    counts = (settings.dominant or 0, settings.contextual, settings.cluster_width or 0)
    assert unit == Unit(24, 24, *counts)
    assert unit.num_entering == settings.num_entering(576)


@pytest.mark.parametrize(
    "rule", [[1, 0, 0], (72, 30, 4), [0.5, 0.1, 4], [0.5, 3, 0], [64, -1, 4], [0.3, -1, 4]], ids=repr
)
def test_rules_that_the_engine_understands(rule: list):
    assert decode_rule({"duet_stage1": rule}) == Stage1Rule(*rule)


@pytest.mark.parametrize(
    "rule",
    [
        *([0, 0, 0], [-0.5, 5, 4], [1, -2, 4], [1, -0.5, 4], [1, 1, -1], [1.5, 0, 4], [2, 1.5, 4], [0.5, 0.1, 0.5]),
        *([1, 2], [1, 2, 3, 4], [True, 1, 1], [math.nan, 1, 1], [1, math.inf, 1], ["1", 1, 1], "abc", None, {}),
    ],
    ids=repr,
)
def test_rules_that_the_engine_refuses(rule: object):
    with pytest.raises(SettingsError, match=r"^duet_stage1 is .*, expected \[dominant, contextual, cluster_width\]"):
        decode_rule({"duet_stage1": rule})


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        ("aggressive", [72 / 576, 30 / 576, 4]),
        ("visionzip", [54 / 576, 10 / 576, 0]),
        ({"dominant": 72, "contextual": 0.25, "cluster_width": 9}, [72, 0.25, 9]),
        ({"visual_tokens": 64}, [102, -1, 4]),
        ({"visual_tokens": 64, "cluster_width": None}, [102, -1, 0]),
        ({"reduction": 0.5}, [pytest.approx(0.8), -1, 4]),
    ],
    ids=repr,
)
def test_rules_as_they_are_sent(request_: object, rule: list):
    assert encode_processor_kwargs(resolve_settings(request_, ANY_SIZE), ANY_SIZE) == {"duet_stage1": rule}


@pytest.mark.parametrize("request_", ["off", {"keep": [0.5, 0]}, {"reduction": 0.3}], ids=repr)
def test_no_rule_where_stage_1_is_off(request_: object):
    assert encode_processor_kwargs(resolve_settings(request_, ANY_SIZE), ANY_SIZE, 7) == {"duet_trace": 7}


@given(variable_shapes().flatmap(lambda shape: st.tuples(st.just(shape), requests(shape))))
def test_a_rule_passes_through_json(case: tuple[ModelShape, dict]):
    shape, request_ = case
    settings = resolve_settings(request_, shape, max_reduction=1.0)
    kwargs = json.loads(json.dumps(encode_processor_kwargs(settings, shape)))
    assert decode_rule(kwargs) == stage1_rule(settings, shape)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
any_numbers = st.integers(-2, 700) | st.integers() | st.floats(-2, 2) | st.floats() | st.booleans()


def decoded_or_refused(decode: Callable[..., Any], *args: object) -> Any:
    try:
        return decode(*args)
    except SettingsError as error:
        return error


@given(junk | st.lists(any_numbers, min_size=3, max_size=3), grids, st.booleans())
def test_any_value_is_a_rule_that_units_follow_or_refused(value: object, item_grids: list, has_cls: bool):
    rule = decoded_or_refused(decode_rule, {"duet_stage1": value})
    if isinstance(rule, SettingsError):
        assert rule.field == "duet_stage1"
        return
    assert rule == Stage1Rule(*value)
    assert rule.dominant > 0
    for unit in cut_units(rule, item_grids, has_cls=has_cls):
        assert 1 <= unit.num_entering <= unit.num_tokens + has_cls


counts_behind = st.lists(st.integers(-1, 8), min_size=4, max_size=4).map(lambda counts: [8, 5, *counts])
any_counts = st.lists(st.integers(-1, 9), min_size=5, max_size=7)


@given(junk | counts_behind | any_counts, st.sampled_from([[], [6, 15]]))
def test_any_value_is_the_counts_of_a_plan_or_refused(held: object, structure: list[int]):
    fits = isinstance(held, list) and len(held) == 6 and {type(count) for count in held} == {int}
    if fits:
        least = 1 if structure else 0  # in both pools
        fits = held[:2] == [8, 5] and all(held[i] >= held[i + 2] >= held[i + 4] >= least for i in (0, 1))
    plan = decoded_or_refused(decode_plan, {"duet_held": held}, 20, VisualRows(SPANS, structure), 2)
    if isinstance(plan, SettingsError):
        assert plan.field == "duet_held"
        assert not fits
    elif plan is None:
        assert held is None or held == [8, 5] * 3
    else:
        assert fits
        assert [len(pool) for segment in plan.segments for pool in segment.pools] == held


@given(prompts(), st.sampled_from(["all", "salient", "last"]), st.integers(0, 2**63 - 1), st.data())
def test_the_engine_lays_out_the_plan_of_the_api(prompt: Prompt, guide: str, trace_id: int, data: st.DataObject):
    """Whatever the images, and whatever each of them keeps."""
    plan = plan_prompt(*prompt)
    text = [row for row in range(prompt.num_tokens) if not plan.layout.is_visual(row)]
    salient = data.draw(st.lists(st.sampled_from(text), max_size=4))
    args = json.loads(json.dumps(encode_extra_args(plan, guide, salient, trace_id)))
    decoded = decode_plan(args, prompt.num_tokens, prompt.visual, len(prompt.shape.boundaries))
    guiding = guiding_rows(plan.layout, guide, salient)
    assert decoded == (replace(plan, guiding_rows=guiding, trace_id=trace_id) if plan.drops else None)


@given(prompts(), st.data())
def test_counts_of_another_prompt_are_refused(prompt: Prompt, data: st.DataObject):
    """One row more or less in the first segment, a rise, or a pool below its structure."""
    plan = plan_prompt(*prompt)
    held = encode_extra_args(plan, "last")["duet_held"]
    num_pools = len(plan.layout.pools)
    pool_idx = data.draw(st.integers(0, num_pools - 1))
    wrong = list(held)
    kind = data.draw(st.sampled_from(["entering", "least", "length"]))
    if kind == "entering":
        wrong[pool_idx] += data.draw(st.sampled_from([-1, 1]))
    elif kind == "least":
        wrong[pool_idx - num_pools] = plan.layout.num_structure(plan.layout.pools[pool_idx]) - 1
    else:
        wrong = wrong[:-1]
    with pytest.raises(SettingsError, match="duet_held is"):
        decode_plan({"duet_held": wrong}, prompt.num_tokens, prompt.visual, len(prompt.shape.boundaries))
