"""From a rule to the counts of each unit, and from counts to the plan of a prompt with images of any size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import (
    CompressionSettings,
    SettingsError,
    Stage1Rule,
    Unit,
    VisualItem,
    VisualRows,
    check_item,
    cut_units,
    guiding_rows,
    layer_average,
    plan_prompt,
    presets,
    resolve_settings,
)
from duet_server.plan.units import TOTAL
from duet_server.plan.wire import stage1_rule
from tests.plan.shapes import llava

ANY_SIZE = llava(num_patches=None, has_cls=False)

grids = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6)
numbers = st.one_of(st.floats(0.001, 0.999), st.integers(1, 2000))
widths = st.integers(0, 9)


def item(settings: CompressionSettings, *item_grids: tuple[int, int], start: int = 1) -> VisualItem:
    units = cut_units(stage1_rule(settings, ANY_SIZE), item_grids, has_cls=False)
    num_tokens = sum(unit.num_tokens for unit in units)
    return VisualItem("image", (start, start + sum(unit.num_entering for unit in units)), num_tokens, tuple(units))


@given(grids, numbers, st.one_of(st.just(0), numbers), widths, st.booleans())
def test_counts_fit_their_units(item_grids, dominant, contextual, width, has_cls):
    units = cut_units(Stage1Rule(dominant, contextual, width), item_grids, has_cls=has_cls)
    assert [(unit.rows, unit.columns) for unit in units] == item_grids
    for unit in units:
        if not unit.is_cut:
            assert unit.num_entering == unit.num_tokens
            assert unit.counts == (0, 0, 0)
            continue
        assert unit.dominant >= 1
        assert unit.contextual >= 0
        assert unit.num_entering <= unit.num_tokens + has_cls
        assert has_cls or unit.num_entering < unit.num_tokens, "a cut that removes nothing is none"
        assert unit.cluster_width == width


@given(grids, st.one_of(st.floats(0.001, 0.999), st.integers(1, 5000)), st.booleans())
def test_a_total_is_shared_out_over_the_units(item_grids, total, has_cls):
    units = cut_units(Stage1Rule(total, TOTAL, 4), item_grids, has_cls=has_cls)
    num_tokens = sum(unit.num_tokens for unit in units)
    wanted = int(total * num_tokens) if total < 1 else total
    if wanted >= num_tokens:
        assert not any(unit.is_cut for unit in units)
    elif wanted >= len(units) * 2 and all(wanted * unit.num_tokens >= num_tokens for unit in units):
        assert sum(unit.num_entering for unit in units) == wanted
    assert sum(unit.num_entering for unit in units) <= max(wanted, len(units)) + len(units)


def test_without_a_rule_units_stay_whole():
    assert cut_units(None, [(3, 4), (1, 1)], has_cls=True) == [Unit(3, 4), Unit(1, 1)]


def test_counts_and_shares_of_every_unit():
    item_grids = [(10, 10), (2, 2), (1, 3)]
    counts = cut_units(Stage1Rule(3, 2, 4), item_grids, has_cls=False)
    assert counts == [Unit(10, 10, 3, 2, 4), Unit(2, 2), Unit(1, 3)]  # the last two have no more tokens than that
    shares = cut_units(Stage1Rule(0.5, 0.25, 4), item_grids, has_cls=False)
    assert shares == [Unit(10, 10, 50, 25, 4), Unit(2, 2, 2, 1, 4), Unit(1, 3)]


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.one_of(
        st.floats(0.0, 0.97).map(lambda share: {"reduction": share}),
        st.floats(0.5, 4000).map(lambda budget: {"visual_tokens": budget}),
    ),
)
def test_every_image_is_within_its_budget(grid, request_):
    """And at most two tokens below it, unless one token is left or the image is smaller than the budget."""
    settings = resolve_settings(request_, ANY_SIZE)
    image = item(settings, grid)
    average = layer_average(image.segment_counts(settings, ANY_SIZE), ANY_SIZE.segment_layers)
    wish = (1 - request_["reduction"]) * image.num_tokens if "reduction" in request_ else request_["visual_tokens"]
    if image.num_entering > 1:
        assert average <= min(wish, image.num_tokens) + 1e-6
    assert average > min(wish, image.num_tokens) - 2
    if wish >= image.num_tokens:
        assert not image.is_cut
        assert average == image.num_tokens


@given(st.integers(2, 40), st.floats(0.05, 0.95))
def test_a_fixed_size_gets_about_the_same(side, share):
    """The counts of an image do not depend on whether the model's other images may differ."""
    budget = {"visual_tokens": min(side * side, round(0.5 + share * side * side, 3))}
    fixed = resolve_settings(budget, llava(num_patches=side * side, has_cls=False), max_reduction=1)
    settings = resolve_settings(budget, ANY_SIZE, max_reduction=1)
    image = item(settings, (side, side))
    assert image.segment_counts(settings, ANY_SIZE) == fixed.segment_counts(side * side)
    assert image.units[0].counts == (fixed.dominant or 0, fixed.contextual, fixed.cluster_width or 0)


def test_images_of_a_pool_may_have_different_keeps():
    """A budget of 64 leaves the image of 8 x 8 whole; the one of 24 x 24 is cut, and drops half of its rows."""
    settings = resolve_settings({"visual_tokens": 64}, ANY_SIZE)
    large = item(settings, (24, 24))
    small = item(settings, (8, 8), start=large.span[1])
    assert (large.num_entering, small.num_entering) == (102, 64)
    visual = VisualRows([large.span, small.span], [])
    plan = plan_prompt(settings, ANY_SIZE, small.span[1] + 5, visual, [large, small])
    assert [segment.num_visual_tokens for segment in plan.segments] == [102 + 64, 51 + 64, 64]
    assert [len(segment.pools) for segment in plan.segments] == [1, 1, 1]


def test_structure_stays_and_does_not_guide():
    """Two frames of 2 x 2 with two rows of structure between them: rows 1-4, 5-6, 7-10, then text."""
    settings = CompressionSettings(None, 0, None, (0.5, 0.0), "all", "custom")
    video = VisualItem("video", (1, 11), 8, (Unit(2, 2), Unit(2, 2)))
    visual = VisualRows([(1, 11)], [5, 6])
    plan = plan_prompt(settings, ANY_SIZE, 14, visual, [video])
    assert [segment.num_visual_tokens for segment in plan.segments] == [8, 4, 0]
    assert [segment.num_tokens for segment in plan.segments] == [14, 10, 6]
    assert plan.layout.num_text_tokens == 6
    assert guiding_rows(plan.layout, "all") == (11, 12, 13)
    with pytest.raises(ValueError, match="row 5 is a visual token"):
        guiding_rows(plan.layout, "salient", [5])


def test_rows_of_placeholders():
    masks = ([0, 1, 1, 0], [1, 0, 0, 1, 1, 0], None)
    starts = (2, 6, 20)
    placeholders = [
        SimpleNamespace(
            offset=start,
            length=3 if mask is None else len(mask),
            is_embed=None if mask is None else torch.tensor(mask) > 0,
        )
        for start, mask in zip(starts, masks, strict=True)
    ]
    assert VisualRows.of(placeholders) == VisualRows([(3, 5), (6, 11), (20, 23)], [7, 8])


def test_a_limit_that_depends_on_the_size():
    settings = resolve_settings({"dominant": 5, "contextual": 0}, ANY_SIZE)
    check_item(settings, "asked", ANY_SIZE, (166, 5, 5, 5), 0.97)
    with pytest.raises(SettingsError, match=r"a layer average of at least 5\.01 visual tokens per image.* keeps 5"):
        check_item(settings, "asked", ANY_SIZE, (167, 5, 5, 5), 0.97)
    share = resolve_settings({"reduction": 0.9}, ANY_SIZE)
    check_item(share, "asked", ANY_SIZE, (100, 0, 0, 0), 0.9)  # checked before the size was known
    with pytest.raises(SettingsError, match=r"compression\.reduction is 0\.9, expected a number from 0 to 0\.8"):
        resolve_settings({"reduction": 0.9}, ANY_SIZE, max_reduction=0.8)
    with pytest.raises(SettingsError, match="a layer average of at least"):
        resolve_settings("aggressive", ANY_SIZE, max_reduction=0.8)


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"dominant": 1.5, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": 1.0, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": 0, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": 5}, "contextual", "a whole number from 0 on, or a share"),
        ({"dominant": 5, "contextual": -1}, "contextual", "a whole number from 0 on, or a share"),
        ({"dominant": 0.9, "contextual": 0.2}, "contextual", r"at most 0\.1, since dominant is 0\.9"),
        ({"visual_tokens": 0}, "visual_tokens", "a number above 0"),
        ({"reduction": 1}, "reduction", r"a number from 0 to 0\.97"),
    ],
    ids=str,
)
def test_values_that_no_image_can_have(fields, field, expected):
    with pytest.raises(SettingsError, match=rf"^compression\.{field} is .*expected {expected}"):
        resolve_settings(fields, ANY_SIZE)


def test_a_budget_is_reported_as_it_was_asked():
    assert resolve_settings({"reduction": 0.9}, ANY_SIZE).as_dict()["reduction"] == 0.9
    assert resolve_settings({"visual_tokens": 64}, ANY_SIZE).as_dict()["visual_tokens"] == 64
    assert resolve_settings({"reduction": 0}, ANY_SIZE).is_off
    assert "budget" not in presets(ANY_SIZE)["light"].as_dict()
