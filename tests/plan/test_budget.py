from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duet_server.plan import Budget, Unit, duet_keep, layer_average, num_kept, off_settings, presets, resolve_settings
from duet_server.plan.budget import entering_total, settings_for_item, smallest_average, split_total
from tests.plan.prompts import ANY_SIZE, any_size, budgets, grids, variable_shapes, visual_item
from tests.plan.shapes import LLAVA_7B, llava, shapes


def resolve(budget, shape=LLAVA_7B):
    return resolve_settings({"visual_tokens": budget}, shape, max_reduction=1.0)


@pytest.mark.parametrize(("budget", "counts"), [(64, (72, 30)), (192, (300, 7))])
def test_the_authors_budgets_give_the_authors_counts(budget, counts):
    resolved = resolve(budget)
    assert (resolved.dominant, resolved.contextual, resolved.cluster_width, resolved.keep) == (*counts, 4, (0.5, 0.0))
    assert resolved.preset == "custom"


def test_128_is_met_exactly_and_so_exceeds_the_balanced_preset_a_little():
    resolved = resolve(128)
    assert (resolved.dominant, resolved.contextual) == (173, 32)
    assert resolved.layer_average(LLAVA_7B) == 128


def test_a_reduction_is_its_budget():
    for budget in (17.28, 64, 100.5, 192, 400, 575):
        reduction = 1 - budget / 576
        assert resolve_settings({"reduction": reduction}, LLAVA_7B) == resolve(budget)


def test_reduction_0_is_off():
    assert resolve_settings({"reduction": 0}, LLAVA_7B) == off_settings(LLAVA_7B)
    assert resolve(576) == off_settings(LLAVA_7B)


def test_stage_1_is_off_above_the_budgets_that_it_can_reach():
    assert resolve(360).dominant == 576
    above = resolve(360.5)
    assert (above.dominant, above.contextual, above.cluster_width) == (None, 0, None)
    assert above.segment_counts(576) == (576, 288, 1)
    assert resolve(400).segment_counts(576) == (576, 341, 107)


def test_the_smallest_budget_keeps_cls_only():
    assert smallest_average(LLAVA_7B) == 0.5
    resolved = resolve(0.5)
    assert (resolved.dominant, resolved.contextual) == (1, 0)


def test_without_cls_the_counts_end_one_token_earlier():
    shape = llava(has_cls=False)
    assert smallest_average(shape) == 0.5
    assert resolve(359.9, shape).segment_counts(576) == (575, 287, 0)
    assert resolve(360, shape).dominant is None
    assert resolve(360, shape).segment_counts(576) == (576, 288, 0)


def test_without_boundaries_only_stage_1_moves():
    shape = llava(boundaries=())
    assert [resolve(budget, shape).num_entering(576) for budget in (1, 64, 575, 575.9, 576)] == [1, 64, 575, 575, 576]


@given(st.integers(1, 1200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n + 1))))
def test_a_split_fits_the_image(case):
    num_patches, total = case
    dominant, contextual = split_total(total, num_patches)
    assert dominant + contextual == total
    assert dominant >= 1
    assert 0 <= contextual <= num_patches - (dominant - 1)


def test_a_split_goes_through_the_presets_and_ends_without_merging():
    for name in ("light", "balanced", "aggressive"):
        preset = presets(LLAVA_7B)[name]
        assert split_total(preset.num_entering(576), 576) == (preset.dominant, preset.contextual)
    assert split_total(577, 576) == (577, 0)


@settings(max_examples=300)
@given(st.booleans().flatmap(lambda has_cls: shapes(has_cls=has_cls)), st.floats(0, 1), st.booleans())
def test_a_budget_is_met_within_one_token(shape, where, whole):
    num_patches, smallest = shape.vision.num_patches, smallest_average(shape)
    budget = smallest + where * (num_patches - smallest)
    budget = min(num_patches, round(budget) + 1) if whole else budget
    resolved = resolve(budget, shape)
    assert budget - 1 < resolved.layer_average(shape) <= budget + 1e-6
    assert resolved == resolve(budget, shape)


@settings(max_examples=200)
@given(shapes(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_never_gives_less(shape, one, other):
    smallest = smallest_average(shape)
    budgets = sorted(smallest + where * (shape.vision.num_patches - smallest) for where in (one, other))
    averages = [resolve(budget, shape).layer_average(shape) for budget in budgets]
    assert averages[0] <= averages[1]


@given(shapes(), st.floats(0, 1))
def test_keeps_lie_between_duets_and_1_and_never_rise(shape, where):
    smallest = smallest_average(shape)
    keep = resolve(smallest + where * (shape.vision.num_patches - smallest), shape).keep
    assert list(keep) == sorted(keep, reverse=True)
    num_patches = shape.vision.num_patches
    counts = [num_kept(num_patches, share) for share in keep]
    bases = [num_kept(num_patches, share) for share in duet_keep(shape)]
    assert all(base <= count <= num_patches for base, count in zip(bases, counts, strict=True))


# From here on, images differ in size.


def wish_of(request, num_tokens):
    """The layer average that a request asks for, for one image."""
    if "reduction" in request:
        return (1 - request["reduction"]) * num_tokens
    return min(num_tokens, request["visual_tokens"])


def average_of(item, resolved, shape):
    return layer_average(item.segment_counts(resolved, shape), shape.segment_layers)


def test_how_many_tokens_may_enter():
    """Under DUET's keeps, 102 tokens are 63.75 on average, and 103 are 64.25. A share is divided by 0.625."""
    assert entering_total(Budget(64, is_share=False), ANY_SIZE) == 102
    assert entering_total(Budget(64.25, is_share=False), ANY_SIZE) == 103
    assert entering_total(Budget(0.1, is_share=False), ANY_SIZE) == 1
    assert entering_total(Budget(0.5, is_share=True), ANY_SIZE) == pytest.approx(0.8)
    assert entering_total(Budget(0.625, is_share=True), ANY_SIZE) == math.inf
    without_boundaries = llava((), num_patches=None)
    assert entering_total(Budget(64.9, is_share=False), without_boundaries) == 64
    assert entering_total(Budget(0.9, is_share=True), without_boundaries) == pytest.approx(0.9)


@given(st.integers(1, 3000), variable_shapes())
def test_one_token_more_would_exceed_the_budget(budget, shape):
    total = entering_total(Budget(budget, is_share=False), shape)
    averages = [replace(off_settings(shape), dominant=n, keep=duet_keep(shape)) for n in (total, total + 1)]
    within, beyond = (settings.layer_average(shape.at(10**6)) for settings in averages)
    assert within <= budget + 1e-9 < beyond


@pytest.mark.parametrize("budget", [2**63, 1e19, 1e300, 10**400], ids=["2**63", "1e19", "1e300", "10**400"])
def test_a_budget_beyond_every_image_leaves_it_whole(budget):
    resolved = resolve_settings({"visual_tokens": budget}, ANY_SIZE)
    image = visual_item(resolved, ANY_SIZE, [(24, 24)])
    assert image.units == (Unit(24, 24),)
    assert image.segment_counts(resolved, ANY_SIZE) == (576, 576, 576)


@pytest.mark.parametrize("reduction", [1.0, 1 + 5e-10, 1 + 1e-9])
def test_the_largest_reduction_keeps_a_token(reduction):
    resolved = resolve_settings({"reduction": reduction}, ANY_SIZE, max_reduction=1.0)
    assert visual_item(resolved, ANY_SIZE, [(24, 24)]).units == (Unit(24, 24, 1, 0, 4),)


@settings(max_examples=300)
@given(variable_shapes(), grids, budgets)
@example(ANY_SIZE, [(24, 24)], {"reduction": 0.3751})
@example(ANY_SIZE, [(24, 24)] * 5, {"visual_tokens": 64})
def test_every_image_is_within_its_budget(shape, item_grids, request_):
    """And less than two tokens below it. Only the one token that every unit keeps may exceed it."""
    resolved = resolve_settings(request_, shape)
    image = visual_item(resolved, shape, item_grids)
    average, wish = average_of(image, resolved, shape), wish_of(request_, image.num_tokens)
    if all(unit.num_entering > 1 for unit in image.units):
        assert average <= wish + 1e-6
    assert average > wish - 2
    assert image.num_entering <= image.num_tokens


@pytest.mark.parametrize(
    ("num_tiles", "num_tokens", "request_", "num_entering", "average"),
    [
        (4, 1160, {"visual_tokens": 1160}, 1160, 1160),
        (4, 1160, {"visual_tokens": 1300}, 1160, 1160),
        (4, 1160, {"reduction": 0.4}, 1113, 695.5),
        (4, 1160, {"visual_tokens": 64}, 102, 63.75),
        (5, 2928, {"visual_tokens": 1810}, 2880, 1800),
        (5, 2928, {"reduction": 0.5}, 2342, 1463.75),
    ],
    ids=str,
)
def test_a_budget_is_for_the_tokens_that_llava_next_would_enter(num_tiles, num_tokens, request_, num_entering, average):
    """Of a picture of 1000 x 100, most of the tiles' tokens are padding; one of 672 x 672 has newlines on top."""
    shape = any_size(LLAVA_7B)
    resolved = resolve_settings(request_, shape)
    image = visual_item(resolved, shape, [(24, 24)] * num_tiles, num_tokens=num_tokens)
    assert (image.num_entering, average_of(image, resolved, shape)) == (num_entering, average)


@given(variable_shapes(), grids, st.floats(0, 500))
def test_an_image_smaller_than_its_budget_keeps_everything(shape, item_grids, more):
    num_tokens = sum(rows * columns for rows, columns in item_grids)
    resolved = resolve_settings({"visual_tokens": num_tokens + more}, shape)
    image = visual_item(resolved, shape, item_grids)
    assert image.units == tuple(Unit(*grid) for grid in item_grids)
    assert image.segment_counts(resolved, shape) == (num_tokens,) * (len(shape.boundaries) + 1)


@given(shapes(has_cls=False), st.floats(0, 1))
def test_a_fixed_size_gets_the_same_counts_from_a_budget(shape, where):
    smallest, num_patches = smallest_average(shape), shape.num_patches
    request_ = {"visual_tokens": smallest + where * (num_patches - smallest)}
    fixed = resolve_settings(request_, shape, max_reduction=1)
    resolved = resolve_settings(request_, any_size(shape))
    image = visual_item(resolved, any_size(shape), [(1, num_patches)])
    assert image.segment_counts(resolved, shape) == fixed.segment_counts(num_patches)
    assert image.units[0].counts == (fixed.dominant or 0, fixed.contextual, fixed.cluster_width or 0)
    assert image.keep(resolved, any_size(shape)) == fixed.keep


@settings(max_examples=300)
@given(st.booleans(), st.integers(1, 1200), st.floats(0, 1), st.booleans())
def test_a_fixed_size_gets_about_the_same_from_any_wish(has_cls, num_patches, where, is_share):
    """With CLS, and from a reduction, it may be a token less or more in each segment."""
    shape = llava(num_patches=num_patches, has_cls=has_cls)
    smallest = smallest_average(shape)
    wish = smallest + where * (num_patches - smallest)
    request_ = {"reduction": max(0, 1 - wish / num_patches)} if is_share else {"visual_tokens": wish}
    fixed = resolve_settings(request_, shape, max_reduction=1)
    resolved = resolve_settings(request_, any_size(shape), max_reduction=1)
    image = visual_item(resolved, any_size(shape), [(1, num_patches)])
    counts = image.segment_counts(resolved, any_size(shape))
    expected = fixed.segment_counts(num_patches)
    assert all(abs(count - other) <= 1 for count, other in zip(counts, expected, strict=True))
    assert average_of(image, resolved, any_size(shape)) == pytest.approx(fixed.layer_average(shape), abs=1)


@given(variable_shapes(), grids, budgets, st.data())
def test_a_larger_budget_never_gives_an_image_less(shape, item_grids, request_, data):
    ((key, amount),) = request_.items()
    other = {key: data.draw(st.floats(0, amount) if key == "reduction" else st.floats(amount, 2000))}
    averages = []
    for asked in (request_, other):
        resolved = resolve_settings(asked, shape)
        averages.append(average_of(visual_item(resolved, shape, item_grids), resolved, shape))
    assert averages[0] <= averages[1]


def test_only_a_budget_depends_on_the_image():
    preset, budget = (resolve_settings(asked, ANY_SIZE) for asked in ("light", {"visual_tokens": 64}))
    assert settings_for_item(preset, ANY_SIZE, 9, is_cut=False) == preset
    assert settings_for_item(budget, ANY_SIZE, 576, is_cut=True) == budget
    assert settings_for_item(budget, ANY_SIZE, 64, is_cut=False) == replace(budget, keep=(1.0, 1.0))


@given(variable_shapes(), grids, budgets)
def test_without_stage_2_a_budget_drops_nothing(shape, item_grids, request_):
    """Stage 1 cuts as before, and every segment holds what enters."""
    resolved = resolve_settings(request_, shape)
    image = visual_item(resolved, shape, item_grids)
    counts = image.segment_counts(resolved.without_stage2(), shape)
    assert set(counts) == {image.num_entering}
