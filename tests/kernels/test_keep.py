"""Stage 2's choice of rows, against a sort of each pool."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_kernels import RankedRows, keep_highest
from duet_kernels.dispatch import implementation

Pool = tuple[int, int, int]  # start, length, keep
UNTOUCHED = -1


@pytest.fixture(scope="module", params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest) -> Iterator[None]:
    with implementation(request.param):
        yield


def naive_keep(score: list[float], pools: list[Pool]) -> list[list[int]]:
    kept = []
    for start, length, keep in pools:
        ranked = sorted(range(length), key=lambda idx: (-score[start + idx], idx))
        kept.append(sorted(ranked[:keep]))
    return kept


def ranked_pools(
    pool_start: torch.Tensor,
    pool_length: torch.Tensor,
    num_keep: torch.Tensor,
    first_row: torch.Tensor,
    target: torch.Tensor,
) -> RankedRows:
    """Pools without guiding rows, which this operation does not read."""
    unread = torch.empty(0, dtype=torch.int64)
    return RankedRows(*[unread] * 4, pool_start, pool_length, unread, num_keep, first_row, target, 0, 0, 0)


def keep(score: torch.Tensor, pools: list[Pool], dtype: torch.dtype = torch.int64) -> list[list[int]]:
    """The kept tokens of each pool. Pools are in `rows` in reverse order, each before a row that must not change."""
    starts, lengths, keeps = torch.tensor(pools, dtype=dtype, device=score.device).T.contiguous()
    targets, end = [], 0
    for *_, num_keep in reversed(pools):
        targets.insert(0, end)
        end += num_keep + 1
    first_rows = [2**33 + 1000 * pool_idx if dtype == torch.int64 else pool_idx for pool_idx in range(len(pools))]
    rows = torch.full((end,), UNTOUCHED, device=score.device)
    first_row, target = (torch.tensor(column, dtype=dtype, device=score.device) for column in (first_rows, targets))
    keep_highest(score, ranked_pools(starts, lengths, keeps, first_row, target), rows)

    kept = []
    for (*_, num_keep), first_row, target in zip(pools, first_rows, targets, strict=True):
        assert rows[target + num_keep] == UNTOUCHED
        kept.append([row - first_row for row in rows[target : target + num_keep].tolist()])
    return kept


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
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
        [(3, 0, 0)],
    ],
    ids=str,
)
def test_kept_rows_equal_a_sort_of_each_pool(pools: list[Pool], dtype: torch.dtype, device: torch.device):
    score = torch.rand(23, generator=torch.Generator().manual_seed(0)).to(device)

    assert keep(score, pools, dtype) == naive_keep(score.tolist(), pools)


def test_no_pools(device: torch.device):
    none, rows = torch.empty(0, dtype=torch.int64, device=device), torch.arange(3, device=device)
    keep_highest(torch.rand(5, device=device), ranked_pools(none, none, none, none, none), rows)

    assert rows.tolist() == [0, 1, 2]


def test_equal_scores_keep_the_lower_token(device: torch.device):
    score = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0], device=device)

    assert keep(score, [(0, 5, 3), (5, 2, 1)]) == [[0, 1, 3], [0]]


def test_scores_may_be_infinite_or_negative(device: torch.device):
    score = torch.tensor([-torch.inf, -2.0, torch.inf, -torch.inf, -1.0], device=device)

    assert keep(score, [(0, 4, 3), (4, 1, 1)]) == [[0, 1, 2], [0]]
    assert keep(score, [(3, 2, 1), (0, 1, 1)]) == [[1], [0]]


def test_both_zeros_tie_and_the_smallest_number_is_above_them(device: torch.device):
    score = torch.tensor([-0.0, 0.0, -1e-45, 1e-45, -0.0, 0.0], device=device)

    assert keep(score, [(0, 6, num_keep) for num_keep in range(1, 7)]) == [
        [3],
        [0, 3],
        [0, 1, 3],
        [0, 1, 3, 4],
        [0, 1, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("num_keep", [1, 1023, 1024, 1025, 1900, 2600])
@pytest.mark.parametrize("num_scores", [3, 100_000], ids=["many ties", "few ties"])
def test_pools_of_thousands(num_keep: int, num_scores: int, device: torch.device):
    score = torch.randint(num_scores, (2700,), generator=torch.Generator().manual_seed(num_keep)).float() / 7 - 1
    pools = [(71, 2601, num_keep), (0, 576, min(num_keep, 288))]

    assert keep(score.to(device), pools) == naive_keep(score.tolist(), pools)


@st.composite
def scored_pools(draw: st.DrawFn) -> tuple[list[float], list[Pool]]:
    """Few different scores, so that there are ties at the cut; text rows between pools."""
    pools, end = [], 0
    for _ in range(draw(st.integers(1, 5))):
        start, length = end + draw(st.integers(0, 3)), draw(st.integers(0, 12))
        pools.append((start, length, draw(st.integers(0, length))))
        end = start + length
    num_rows = end + draw(st.integers(1, 3))
    scores = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, -torch.inf, -3.0])
    return draw(st.lists(scores, min_size=num_rows, max_size=num_rows)), pools


@settings(max_examples=20)
@given(scored_pools())
def test_any_pools_equal_the_sort(device: torch.device, scored: tuple[list[float], list[Pool]]):
    score, pools = scored

    assert keep(torch.tensor(score, device=device), pools) == naive_keep(score, pools)


def test_strided_scores(device: torch.device):
    score = torch.rand(40, generator=torch.Generator().manual_seed(1)).to(device)[::2]

    assert keep(score, [(1, 9, 4), (12, 8, 3)]) == naive_keep(score.tolist(), [(1, 9, 4), (12, 8, 3)])


def test_counts_of_another_shape_are_refused_by_the_kernel(device: torch.device):
    zero, rows = torch.zeros(2, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int64, device=device)

    with implementation("triton"), pytest.raises(AssertionError, match="Size"):
        keep_highest(torch.rand(3, device=device), ranked_pools(zero, zero, zero[:1], zero, zero), rows)
