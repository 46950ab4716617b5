from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import SegmentPlan, Span, guiding_rows, lay_out, make_layout, make_plan, num_kept, text_rows
from tests.plan.shapes import llava, schedules
from tests.plan.test_layout import layouts, structured_layouts

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE_TOKEN_ID = 4


GOLDEN_CASES = [
    pytest.param(case, id=f"{model}-{case['name']}")
    for model in ("llava_mha", "llava_gqa")
    for case in json.loads((GOLDEN / model / "cases.json").read_text())
]


def plan_of_case(case):
    image_at = case["prompt_token_ids"].index(IMAGE_TOKEN_ID)
    layout = make_layout(case["prefill_len"], [(image_at, image_at + case["dominant"] + case["contextual"])])
    return make_plan(layout, case["keep"], guiding_rows(layout, "last"))


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_every_layer_holds_what_the_authors_code_held(case):
    lens = case["kv_lens_per_layer"]
    layers = llava(case["layers"], len(lens)).segment_layers
    segments = plan_of_case(case).segments
    assert [segment.num_tokens for segment, n in zip(segments, layers, strict=True) for _ in range(n)] == lens


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_text_rows_lie_where_the_authors_code_moved_them(case):
    plan = plan_of_case(case)
    held = list(range(case["prefill_len"]))
    for segment_idx, kept_rows in enumerate(case["kept_rows_per_stage"], start=1):
        held = [held[row] for row in kept_rows]
        text = [row for row in range(case["prefill_len"]) if not plan.layout.is_visual(row)]
        assert [held.index(row) for row in text] == text_rows(plan, segment_idx, text)
        (pool,) = plan.segments[segment_idx].pools
        assert all(plan.layout.is_visual(row) for row in held[pool.start : pool.end])


def test_pools_are_counted_each_on_its_own_and_from_what_entered():
    plan = make_plan(make_layout(30, [(2, 7), (10, 17)]), (0.5, 0.3, 0.0), (29,))
    assert plan.segments == (
        SegmentPlan(30, 0, (Span(2, 7), Span(10, 17))),
        SegmentPlan(23, 7, (Span(2, 4), Span(7, 10))),  # floor(2.5) and floor(3.5)
        SegmentPlan(21, 9, (Span(2, 3), Span(6, 8))),  # floor(1.5) and floor(2.1)
        SegmentPlan(18, 12, (Span(2, 2), Span(5, 5))),
    )
    assert plan.guiding_rows == (29,)


def test_text_and_generated_rows_close_up():
    plan = make_plan(make_layout(30, [(2, 7), (10, 17)]), (0.5, 0.0), (29,))
    rows = (0, 1, 7, 9, 17, 29, 30, 35)
    assert text_rows(plan, 0, rows) == list(rows)
    assert text_rows(plan, 1, rows) == [0, 1, 4, 6, 10, 22, 23, 28]
    assert text_rows(plan, 2, rows) == [0, 1, 2, 4, 5, 17, 18, 23]


def test_the_last_row_is_last_even_if_visual():
    plan = make_plan(make_layout(10, [(2, 10)]), (0.5,), (9,))
    assert text_rows(plan, 1, [9]) == [5]
    with pytest.raises(AssertionError, match="row=5 is visual"):
        text_rows(plan, 1, [5])


def test_drops_says_whether_any_segment_is_shorter():
    layout = make_layout(30, [(2, 7)])
    assert not make_plan(layout, (1.0, 1.0), (29,)).drops
    assert make_plan(layout, (1.0, 0.5), (29,)).drops
    assert not make_plan(make_layout(30, []), (0.5, 0.0), ()).drops


@pytest.mark.parametrize("keep", [(0.5, 0.6), (1.1, 0.5), (0.5, -0.1), (float("nan"), 0.0)], ids=str)
def test_refuses_keeps_that_rise_or_leave_their_range(keep):
    with pytest.raises(ValueError, match=r"keep is \[.*\], expected shares from 1 to 0 that never rise"):
        make_plan(make_layout(30, [(2, 7)]), keep, (29,))


@given(layouts(), st.integers(0, 4).flatmap(schedules))
def test_counts_never_rise_and_never_exceed_the_input(layout, keep):
    plan = make_plan(layout, keep, guiding_rows(layout, "all"))
    assert len(plan.segments) == len(keep) + 1
    assert plan.segments[0] == SegmentPlan(layout.num_tokens, 0, layout.pools)
    for earlier, later in pairwise(plan.segments):
        assert later.num_tokens <= earlier.num_tokens <= layout.num_tokens
        assert all(len(new) <= len(old) for old, new in zip(earlier.pools, later.pools, strict=True))
    for segment, share in zip(plan.segments, (1.0, *keep), strict=True):
        assert [len(pool) for pool in segment.pools] == [num_kept(len(pool), share) for pool in layout.pools]


def check_tiles(layout, keep):
    """Text rows and pools are together the rows of each segment."""
    plan = make_plan(layout, keep, ())
    text = [row for row in range(layout.num_tokens) if not layout.is_visual(row)]
    for segment_idx, segment in enumerate(plan.segments):
        rows = text_rows(plan, segment_idx, text)
        rows += [row for pool in segment.pools for row in range(pool.start, pool.end)]
        assert sorted(rows) == list(range(segment.num_tokens))
        assert segment.num_tokens + segment.dropped == layout.num_tokens


@given(layouts(), st.integers(1, 3).flatmap(schedules))
def test_text_rows_and_pools_tile_every_segment(layout, keep):
    check_tiles(layout, keep)


@given(layouts(), st.integers(1, 3).flatmap(schedules), st.data())
def test_text_rows_close_up_by_what_the_pools_before_them_drop(layout, keep, data):
    plan, last = make_plan(layout, keep, ()), layout.num_tokens - 1
    text = [row for row in range(layout.num_tokens) if not layout.is_visual(row)]
    rows = sorted(data.draw(st.sets(st.sampled_from([*text, last, last + 1, last + 7]))))
    for segment_idx, segment in enumerate(plan.segments):
        lost = [(pool.start, len(pool) - len(kept)) for pool, kept in zip(layout.pools, segment.pools, strict=True)]
        expected = [row - sum(num for start, num in lost if start <= row) for row in rows]
        assert text_rows(plan, segment_idx, rows) == expected


@given(layouts(), schedules(2))
def test_plans_are_deterministic(layout, keep):
    assert make_plan(layout, keep, ()) == make_plan(layout, keep, ())


def test_counts_are_laid_out_pool_by_pool():
    """The counts of two pools need not fall alike. The first pool has three rows of structure, which are kept."""
    layout = make_layout(30, [(2, 7), (10, 17)], [3, 4, 5])
    plan = lay_out(layout, [[5, 7], [5, 3], [3, 0]], (29,))
    assert plan.segments == (
        SegmentPlan(30, 0, (Span(2, 7), Span(10, 17)), 3),
        SegmentPlan(26, 4, (Span(2, 7), Span(10, 13)), 3),
        SegmentPlan(21, 9, (Span(2, 5), Span(8, 8)), 3),
    )
    assert [segment.num_visual_tokens for segment in plan.segments] == [9, 5, 0]
    assert (plan.guiding_rows, plan.dropped) == ((29,), (0, 4, 9))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([[4, 7], [4, 3]], r"a pool holds \[4, 4\], expected counts from 5 to 1 that never rise"),
        ([[6, 7], [5, 3]], r"a pool holds \[6, 5\]"),
        ([[5, 7], [0, 3]], r"a pool holds \[5, 0\], expected counts from 5 to 1"),
        ([[5, 7], [5, 8]], r"a pool holds \[7, 8\], expected counts from 7 to 0"),
        ([[5, 7], [5, 3], [5, 4]], r"a pool holds \[7, 3, 4\]"),
        ([[5, 7], [5, -1]], r"a pool holds \[7, -1\]"),
        ([[5], [4]], "zip"),
        ([[5, 7], [5]], "zip"),
        ([[5, 7, 1], [5, 3, 1]], "zip"),
    ],
    ids=str,
)
def test_refuses_counts_that_no_pool_can_hold(held, message):
    with pytest.raises(ValueError, match=message):
        lay_out(make_layout(30, [(2, 7), (10, 17)], [4]), held, ())


@given(structured_layouts(), st.integers(0, 4).flatmap(schedules))
def test_keeps_are_shares_of_the_visual_tokens_and_structure_stays(layout, keep):
    plan = make_plan(layout, keep, ())
    for segment, share in zip(plan.segments, (1.0, *keep), strict=True):
        for pool, kept in zip(layout.pools, segment.pools, strict=True):
            num_structure = layout.num_structure(pool)
            assert len(kept) == num_kept(len(pool) - num_structure, share) + num_structure
        assert segment.num_tokens - segment.num_visual_tokens == layout.num_text_tokens
        assert segment.num_tokens + segment.dropped == layout.num_tokens


@given(structured_layouts(), st.integers(1, 3).flatmap(schedules))
def test_a_plan_is_laid_out_from_its_own_counts(layout, keep):
    plan = make_plan(layout, keep, (3,))
    assert lay_out(layout, [[len(pool) for pool in segment.pools] for segment in plan.segments], (3,)) == plan


@given(structured_layouts(), st.integers(1, 3).flatmap(schedules))
def test_text_rows_and_pools_with_structure_tile_every_segment(layout, keep):
    check_tiles(layout, keep)
