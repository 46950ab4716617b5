"""From a rule to the counts of each unit."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from duet_server.plan import Stage1Rule, Unit, cut_units, excess_positions, presets
from duet_server.plan.budget import split_total
from duet_server.plan.units import TOTAL
from duet_server.plan.wire import stage1_rule
from tests.plan.prompts import any_size
from tests.plan.shapes import llava

sides = st.integers(1, 40)
grids = st.lists(st.tuples(sides, sides), min_size=1, max_size=6)
numbers = st.one_of(st.floats(0.001, 0.999), st.integers(1, 2000))
rules = st.builds(Stage1Rule, numbers, st.one_of(st.just(0), numbers), st.integers(0, 9))
totals = st.one_of(st.floats(0.001, 0.999), st.integers(1, 5000))


@given(grids, st.one_of(rules, totals.map(lambda total: Stage1Rule(total, TOTAL, 4))), st.booleans())
def test_counts_fit_their_units(item_grids, rule, has_cls):
    units = cut_units(rule, item_grids, has_cls=has_cls)
    assert [(unit.rows, unit.columns) for unit in units] == item_grids
    for unit in units:
        if not unit.is_cut:
            assert unit == Unit(unit.rows, unit.columns)
            assert unit.num_entering == unit.num_tokens
            continue
        assert unit.dominant >= 1
        assert unit.contextual >= 0
        assert unit.counts == (unit.dominant, unit.contextual, rule.cluster_width)
        assert 1 <= unit.num_entering <= unit.num_tokens + has_cls
        assert has_cls or unit.num_entering < unit.num_tokens, "a cut that removes nothing is none"


@given(grids, rules, st.booleans())
def test_units_keep_what_the_rule_says_as_far_as_they_have_it(item_grids, rule, has_cls):
    for unit in cut_units(rule, item_grids, has_cls=has_cls):
        rows = unit.num_tokens + has_cls
        dominant, contextual = (
            round(number * unit.num_tokens) if number < 1 else number for number in (rule.dominant, rule.contextual)
        )
        dominant = min(max(1, dominant), rows)
        contextual = min(contextual, rows - dominant)
        if has_cls or dominant + contextual < rows:
            assert (unit.dominant, unit.contextual) == (dominant, contextual)
        else:
            assert not unit.is_cut


@given(grids, totals, st.booleans())
def test_a_total_is_shared_out_in_proportion(item_grids, total, has_cls):
    """No unit is a token or more off its part, unless its part is below the one token that every unit keeps."""
    units = cut_units(Stage1Rule(total, TOTAL, 4), item_grids, has_cls=has_cls)
    num_tokens = sum(unit.num_tokens for unit in units)
    wanted = int(total * num_tokens) if total < 1 else total
    if wanted >= num_tokens:
        assert not any(unit.is_cut for unit in units)
        return
    parts = [wanted * unit.num_tokens / num_tokens for unit in units]
    assert all(
        abs(unit.num_entering - part) < 1 + 1e-9 or (unit.num_entering == 1 and part < 1)
        for unit, part in zip(units, parts, strict=True)
    )
    num_raised = sum(unit.num_entering == 1 and part < 1 for unit, part in zip(units, parts, strict=True))
    assert wanted <= sum(unit.num_entering for unit in units) <= wanted + num_raised
    for unit in units:
        if unit.is_cut:
            assert (unit.dominant, unit.contextual) == split_total(unit.num_entering, unit.num_tokens)


@given(st.tuples(sides, sides), st.integers(1, 6), totals)
def test_a_total_for_tiles_of_one_size_is_met_exactly(grid, num_tiles, total):
    num_tokens = num_tiles * grid[0] * grid[1]
    wanted = int(total * num_tokens) if total < 1 else total
    assume(num_tiles <= wanted < num_tokens)
    units = cut_units(Stage1Rule(total, TOTAL, 4), [grid] * num_tiles, has_cls=False)
    assert sum(unit.num_entering for unit in units) == wanted
    assert max(unit.num_entering for unit in units) - min(unit.num_entering for unit in units) <= 1


def test_every_unit_keeps_a_token_even_beyond_the_total():
    units = cut_units(Stage1Rule(2, TOTAL, 4), [(3, 3)] * 4, has_cls=False)
    assert units == [Unit(3, 3, 1, 0, 4)] * 4


@given(grids, st.booleans())
def test_without_a_rule_units_stay_whole(item_grids, has_cls):
    assert cut_units(None, item_grids, has_cls=has_cls) == [Unit(*grid) for grid in item_grids]


def test_counts_and_shares_of_every_unit():
    item_grids = [(10, 10), (2, 2), (1, 3)]
    counts = cut_units(Stage1Rule(3, 2, 4), item_grids, has_cls=False)
    assert counts == [Unit(10, 10, 3, 2, 4), Unit(2, 2), Unit(1, 3)]  # the last two have no more tokens than that
    shares = cut_units(Stage1Rule(0.5, 0.25, 4), item_grids, has_cls=False)
    assert shares == [Unit(10, 10, 50, 25, 4), Unit(2, 2, 2, 1, 4), Unit(1, 3)]


def test_a_class_token_counts_among_the_dominant():
    """A unit of four has five rows with CLS. So four rows are a cut that removes one, and five a cut that adds CLS."""
    item_grids = [(2, 2)]
    assert cut_units(Stage1Rule(3, 1, 4), item_grids, has_cls=True) == [Unit(2, 2, 3, 1, 4)]
    assert cut_units(Stage1Rule(9, 9, 4), item_grids, has_cls=True) == [Unit(2, 2, 5, 0, 4)]
    assert cut_units(Stage1Rule(3, 1, 4), item_grids, has_cls=False) == [Unit(2, 2)]


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("name", ["light", "balanced", "aggressive", "visionzip"])
def test_presets_as_shares_are_the_authors_counts_for_576_tokens(name, has_cls):
    fixed = llava(has_cls=has_cls)
    shape = any_size(fixed)
    rule, settings = stage1_rule(presets(shape)[name], shape), presets(fixed)[name]
    expected = Unit(24, 24, settings.dominant, settings.contextual, settings.cluster_width or 0)
    assert cut_units(rule, [(24, 24)] * 3, has_cls=has_cls) == [expected] * 3


@pytest.mark.parametrize(("num_tokens", "is_cut"), [(1223, False), (1224, True), (2304, True)])
def test_a_cut_never_lets_more_tokens_enter(num_tokens, is_cut):
    """300 + 7 rows of each of four tiles are 1,228, with four class tokens."""
    units = cut_units(Stage1Rule(300, 7, 4), [(24, 24)] * 4, has_cls=True, num_tokens=num_tokens)
    assert units == [Unit(24, 24, 300, 7, 4) if is_cut else Unit(24, 24)] * 4


@given(st.sampled_from(["light", "balanced", "aggressive", "visionzip"]), st.integers(1, 4000), st.booleans())
def test_presets_as_shares_are_within_a_token_of_scaled_counts(name, num_tokens, has_cls):
    """They differ where a count lies halfway between two whole numbers."""
    fixed = llava(num_patches=num_tokens, has_cls=has_cls)
    shape = any_size(fixed)
    (unit,) = cut_units(stage1_rule(presets(shape)[name], shape), [(1, num_tokens)], has_cls=has_cls)
    settings = presets(fixed)[name]
    assert unit.num_entering == pytest.approx(settings.num_entering(num_tokens), abs=1)
    if unit.is_cut:
        assert unit.dominant == pytest.approx(settings.dominant, abs=1)
        assert unit.contextual == settings.contextual


def test_how_many_positions_images_take_beyond_their_tokens():
    """A whole image takes fewer positions than it has tokens, which makes room for others of the prompt."""
    assert excess_positions([]) == 0
    assert excess_positions([Unit(1, 100, 5, 0, 4)]) == 95
    assert excess_positions([Unit(60, 40, 3, 1, 4), Unit(4, 4)]) == 60 - 4 + 4 - 16
