"""The rows of a padded batch at a boundary, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from duet_training.batch_plan import plan_boundaries

# Sample 0: text 0, pool 1-4, text 5-6, padding 7. Sample 1: text alone. Sample 2: pools 0-1, 3-6, text 2, 7.
IS_VISUAL = np.array(
    [[0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1, 1, 0]],
    dtype=bool,
)
GUIDING = np.array(
    [[0, 0, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 1]],
    dtype=bool,
)
LENGTHS = np.array([7, 5, 8])


def plan(*keep: float):
    return plan_boundaries(IS_VISUAL, GUIDING, LENGTHS, keep, torch.device("cpu"))


def test_text_moves_up_and_pools_are_left_to_be_chosen():
    (boundary,) = plan(0.5)

    assert boundary.num_rows == 5
    assert boundary.is_padding.tolist() == [[False] * 5, [False] * 5, [False] * 5]
    rows = boundary.rows.view(3, 5).tolist()
    assert [rows[0][idx] for idx in (0, 3, 4)] == [0, 5, 6]
    assert rows[1] == [8, 9, 10, 11, 12]
    assert [rows[2][idx] for idx in (1, 4)] == [18, 23]
    ranked = boundary.ranked
    assert ranked.cu_keys.tolist() == [0, 8, 16, 24]
    assert ranked.pool_start.tolist() == ranked.first_row.tolist() == [1, 16, 19]
    assert ranked.pool_length.tolist() == [4, 2, 4]
    assert ranked.pool_request.tolist() == [0, 2, 2]
    assert ranked.num_keep.tolist() == [2, 1, 2]
    assert ranked.target.tolist() == [1, 10, 12]


def test_only_samples_that_drop_have_guides():
    (boundary,) = plan(0.5)

    ranked = boundary.ranked
    assert ranked.guiding_keys.tolist() == [5, 6, 18, 23]
    assert ranked.cu_queries.tolist() == [0, 2, 2, 4]
    assert ranked.query_positions.tolist() == [5, 6, 2, 7]
    assert (ranked.max_queries, ranked.max_keys, ranked.max_pool) == (2, 8, 4)


def test_later_boundaries_count_in_closed_up_rows():
    _, boundary = plan(0.5, 0.25)

    assert boundary.num_rows == 5
    assert boundary.is_padding.tolist()[0] == [False] * 4 + [True]
    assert boundary.ranked.pool_start.tolist() == [1, 12], "the pool that goes entirely is not ranked"
    assert boundary.ranked.num_keep.tolist() == [1, 1]
    assert boundary.ranked.guiding_keys.tolist() == [3, 4, 11, 14]


def test_a_boundary_where_nothing_drops_is_none():
    assert plan(1.0) == [None]
    first, second = plan(1.0, 0.0)
    assert first is None
    assert second.ranked is None


def test_a_pool_without_guides_cannot_drop():
    guideless = GUIDING & (np.arange(8) < 7)
    with pytest.raises(ValueError, match=r"no guiding row follows the visual tokens \[3, 7\)"):
        plan_boundaries(IS_VISUAL, guideless, LENGTHS, [0.5], torch.device("cpu"))


def test_padding_stays_until_something_drops():
    """Rows before the second boundary are still numbered by the original width of the batch."""
    wide = [np.pad(rows, ((0, 0), (0, 3))) for rows in (IS_VISUAL, GUIDING)]
    first, second = plan_boundaries(*wide, LENGTHS, [1.0, 0.0], torch.device("cpu"))
    assert first is None
    assert second.ranked is None
    assert second.rows.view(3, -1).tolist() == [[0, 5, 6, 0, 0], [11, 12, 13, 14, 15], [24, 29, 22, 22, 22]]
