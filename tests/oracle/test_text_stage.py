"""Stage 2's pools, guiding rows and choice of rows, with attention written by hand."""

from __future__ import annotations

import pytest
import torch

from tests.oracle.text_stage import kept_rows, resolve_guiding_rows, visual_pools

# Prompt rows: text 0, pool 1-4, text 5, pool 6-7, text 8-9.
POOLS = [(1, 5), (6, 8)]


def test_pools_are_runs_of_visual_rows():
    is_visual = [row in {1, 2, 3, 4, 6, 7} for row in range(10)]

    assert visual_pools(is_visual) == POOLS
    assert visual_pools([True, True, False, True]) == [(0, 2), (3, 4)]
    assert visual_pools([False]) == []


@pytest.mark.parametrize(
    ("text", "expected"), [("all", [5, 8, 9]), ("last", [9]), ([9, 5], [5, 9])], ids=["all", "last", "rows"]
)
def test_guiding_rows(text: str | list[int], expected: list[int]):
    assert resolve_guiding_rows(text, POOLS, num_rows=10) == expected


@pytest.mark.parametrize("text", ["some", [3, 9], [10], [-1]], ids=str)
def test_guiding_rows_that_are_no_text_are_refused(text: str | list[int]):
    with pytest.raises(ValueError, match="guiding_rows"):
        resolve_guiding_rows(text, POOLS, num_rows=10)


def test_each_pool_is_ranked_by_the_guiding_rows_after_it():
    guiding, attention = [5, 9], torch.zeros(2, 10)
    attention[0, 1:5] = torch.tensor([0.0, 0.5, 0.0, 0.9])
    attention[0, 6:8] = torch.tensor([1.0, 0.0])  # row 5 lies before this pool and must not count
    attention[1, 1:5] = torch.tensor([0.8, 0.0, 0.0, 0.0])
    attention[1, 6:8] = torch.tensor([0.1, 0.2])

    assert kept_rows(attention, guiding, range(10), POOLS, keep=0.5) == [0, 1, 4, 5, 7, 8, 9]


def test_a_later_segment_counts_from_the_tokens_that_entered():
    guiding, rows = [9], [0, 1, 3, 4, 5, 7, 8, 9]  # row 2 and row 6 are gone
    attention = torch.tensor([[0.0, 0.1, 0.3, 0.2, 0.0, 0.1, 0.0, 0.0]])

    assert kept_rows(attention, guiding, rows, POOLS, keep=0.5) == [0, 2, 3, 4, 5, 6, 7]
    assert kept_rows(attention, guiding, rows, POOLS, keep=0.25) == [0, 2, 4, 6, 7]
    assert kept_rows(attention, guiding, rows, POOLS, keep=0.0) == [0, 4, 6, 7]


def test_equal_scores_keep_the_lower_row():
    assert kept_rows(torch.zeros(1, 10), [9], range(10), POOLS, keep=0.5) == [0, 1, 2, 5, 6, 8, 9]


def test_a_pool_that_drops_needs_a_guide_after_it():
    attention = torch.zeros(1, 10)

    assert kept_rows(attention, [5], range(10), POOLS, keep=1.0) == list(range(10))
    with pytest.raises(ValueError, match=r"no guiding row follows the visual tokens \[6, 8\)"):
        kept_rows(attention, [5], range(10), POOLS, keep=0.5)
