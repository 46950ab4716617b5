"""Stage 2 keep: exact rows against a sort of each pool."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_kernels import keep_highest

Pool = tuple[int, int, int]  # start, length, keep


def naive_keep(score: list[float], pools: list[Pool]) -> list[int]:
    kept = []
    for start, length, keep in pools:
        ranked = sorted(range(start, start + length), key=lambda row: (-score[row], row))
        kept += sorted(ranked[:keep])
    return kept


def keep(score: torch.Tensor, pools: list[Pool]) -> list[int]:
    starts, lengths, keeps = (torch.tensor(column) for column in zip(*pools, strict=True))
    return keep_highest(score, starts, lengths, keeps, int(lengths.max()), int(keeps.sum())).tolist()


@pytest.mark.parametrize(
    "pools",
    [
        [(0, 1, 1)],
        [(0, 1, 0)],
        [(0, 23, 23)],
        [(0, 23, 0)],
        [(5, 9, 4)],
        [(14, 9, 1)],
        [(2, 5, 2), (9, 1, 1), (11, 12, 7)],
        [(2, 5, 0), (9, 1, 0), (11, 12, 0)],
        [(0, 3, 3), (3, 8, 0), (11, 12, 1)],
        [(4, 0, 0), (4, 6, 3), (23, 0, 0)],
        [(20, 3, 2), (0, 7, 5)],
    ],
    ids=str,
)
def test_pools(pools: list[Pool]):
    score = torch.rand(23, generator=torch.Generator().manual_seed(0))

    assert keep(score, pools) == naive_keep(score.tolist(), pools)


def test_equal_scores_keep_the_lower_row():
    assert keep(torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]), [(0, 5, 3), (5, 2, 1)]) == [0, 1, 3, 5]


def test_scores_may_be_infinite_or_negative():
    score = torch.tensor([-torch.inf, -2.0, torch.inf, -torch.inf, -1.0])

    assert keep(score, [(0, 4, 3), (4, 1, 1)]) == [0, 1, 2, 4]
    assert keep(score, [(3, 2, 1), (0, 1, 1)]) == [4, 0]


@st.composite
def scored_pools(draw: st.DrawFn) -> tuple[list[float], list[Pool]]:
    """Few different scores, so that ties cross the cut; text rows between pools."""
    pools, end = [], 0
    for _ in range(draw(st.integers(1, 5))):
        start, length = end + draw(st.integers(0, 3)), draw(st.integers(0, 12))
        pools.append((start, length, draw(st.integers(0, length))))
        end = start + length
    num_rows = end + draw(st.integers(1, 3))
    return draw(st.lists(st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0]), min_size=num_rows, max_size=num_rows)), pools


@settings(deadline=None)
@given(scored_pools())
def test_any_pools_equal_the_sort(scored: tuple[list[float], list[Pool]]):
    score, pools = scored

    assert keep(torch.tensor(score), pools) == naive_keep(score, pools)


@settings(deadline=None)
@given(scored_pools())
def test_batch_equals_its_members_alone(scored: tuple[list[float], list[Pool]]):
    score, pools = torch.tensor(scored[0]), scored[1]

    assert keep(score, pools) == [row for pool in pools for row in keep(score, [pool])]


def test_strided_scores_32_bit_counts_and_a_loose_longest_pool():
    score = torch.rand(40, generator=torch.Generator().manual_seed(1))[::2]
    starts, lengths, keeps = torch.tensor([[1, 12], [9, 8], [4, 3]], dtype=torch.int32)
    rows = keep_highest(score, starts, lengths, keeps, max_length=17, total_keep=7)

    assert rows.dtype == torch.int64
    assert rows.tolist() == naive_keep(score.tolist(), [(1, 9, 4), (12, 8, 3)])


def test_the_number_of_rows_needs_no_data():
    score, counts = torch.zeros(9, device="meta"), torch.ones(3, 2, device="meta").long()

    assert keep_highest(score, *counts, max_length=4, total_keep=5).shape == (5,)
