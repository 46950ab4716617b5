from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_server.plan import duet_keep, num_kept, off_settings, presets, resolve_settings
from duet_server.plan.budget import smallest_average, split_total
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
