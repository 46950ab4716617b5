"""Stage 2 score against one softmax a guiding row and head, written out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from duet_kernels import guided_score


@dataclass
class Batch:
    """Requests one after another; `guiding` are each request's own rows."""

    query: torch.Tensor  # [queries, heads, d]
    key: torch.Tensor  # [keys, kv_heads, d]
    num_keys: list[int]
    guiding: list[list[int]]

    def score(self, scale: float = 0.5) -> torch.Tensor:
        num_queries = [len(rows) for rows in self.guiding]
        return guided_score(
            self.query,
            self.key,
            cumulative(num_queries),
            cumulative(self.num_keys),
            torch.tensor([row for rows in self.guiding for row in rows]),
            max(num_queries),
            max(self.num_keys),
            scale,
        )

    def members(self) -> list[Batch]:
        queries = self.query.split([len(rows) for rows in self.guiding])
        keys = self.key.split(self.num_keys)
        return [
            Batch(*parts[:2], [parts[2]], [parts[3]])
            for parts in zip(queries, keys, self.num_keys, self.guiding, strict=True)
        ]

    def naive(self, scale: float = 0.5) -> list[float]:
        return [value for member in self.members() for value in naive_score(member, scale)]


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


def naive_score(request: Batch, scale: float) -> list[float]:
    """Mean over guiding rows and heads of each row's causal softmax."""
    (num_keys,), (guiding,) = request.num_keys, request.guiding
    num_heads, num_kv_heads = request.query.shape[1], request.key.shape[1]
    query, key = request.query.double(), request.key.double()
    total = [0.0] * num_keys
    for query_idx, row in enumerate(guiding):
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            logits = [scale * float(query[query_idx, head] @ key[seen, kv_head]) for seen in range(row + 1)]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for seen, weight in enumerate(weights):
                total[seen] += weight / sum(weights) / num_heads / len(guiding)
    return total


def random_batch(
    num_keys: list[int], guiding: list[list[int]], heads: int = 4, kv_heads: int = 2, head_dim: int = 5, seed: int = 0
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(map(len, guiding)), heads, head_dim, generator=generator)
    return Batch(query, torch.randn(sum(num_keys), kv_heads, head_dim, generator=generator), num_keys, guiding)


def assert_equals_the_loop(batch: Batch, scale: float = 0.5) -> None:
    score = batch.score(scale)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, torch.tensor(batch.naive(scale), dtype=torch.float32), rtol=1e-5, atol=1e-6)


RAGGED = [13, 1, 7, 29], [[4, 9, 12], [0], [6], [2, 3, 17, 27, 28]]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ragged_requests(kv_heads: int, dtype: torch.dtype):
    batch = random_batch(*RAGGED, kv_heads=kv_heads)
    batch.query, batch.key = batch.query.to(dtype), batch.key.to(dtype)

    assert_equals_the_loop(batch)


@pytest.mark.parametrize(
    ("num_keys", "guiding"),
    [(1, [0]), (6, [5]), (6, [0]), (6, [0, 1, 2, 3, 4, 5]), (33, [7, 30])],
    ids=["one key", "last row", "first row", "every row", "rows in between"],
)
def test_one_request(num_keys: int, guiding: list[int]):
    assert_equals_the_loop(random_batch([num_keys], [guiding], head_dim=3))


def test_batch_equals_its_members_alone():
    batch = random_batch(*RAGGED)
    alone = torch.cat([member.score() for member in batch.members()])

    torch.testing.assert_close(batch.score(), alone, rtol=0, atol=1e-6)


def test_neighbours_do_not_leak():
    batch = random_batch(*RAGGED)
    before = batch.score()
    batch.key[:13], batch.query[:3] = 1e4, -1e4

    assert batch.score()[13:].equal(before[13:])


def test_keys_behind_every_guiding_row_score_nothing():
    score = random_batch([9, 5], [[1, 4], [4]]).score()

    assert score[5:9].tolist() == [0.0] * 4
    assert (score[:5] > 0).all()
    torch.testing.assert_close(score.split([9, 5])[0].sum(), torch.tensor(1.0))


def test_within_a_later_pool_earlier_guides_change_no_order():
    """What several pools rely on: rows before a pool add nothing to it, so its order is that of the rows after it."""
    batch = random_batch([20], [[6, 7, 18, 19]])
    after = Batch(batch.query[2:], batch.key, [20], [[18, 19]])

    torch.testing.assert_close(batch.score()[8:] * 4, after.score()[8:] * 2, rtol=1e-5, atol=1e-7)


def test_equal_keys_score_equally():
    batch = random_batch([8, 3], [[7], [2]])
    batch.key[:] = batch.key[0]

    torch.testing.assert_close(batch.score(), torch.tensor([1 / 8] * 8 + [1 / 3] * 3))


def test_huge_logits_stay_finite():
    assert_equals_the_loop(random_batch(*RAGGED), scale=1e4)


def test_strided_rows_and_32_bit_offsets():
    batch = random_batch(*RAGGED)
    expected = batch.score()
    fused = torch.cat([batch.key, batch.key], dim=-1)
    batch.key, batch.query = fused[..., :5], batch.query.repeat_interleave(2, dim=1)[:, ::2]
    assert not batch.key.is_contiguous()
    assert not batch.query.is_contiguous()
    num_keys, guiding = RAGGED
    cu_queries, cu_keys = (cumulative(lengths).int() for lengths in (list(map(len, guiding)), num_keys))
    positions = torch.tensor([row for rows in guiding for row in rows]).int()

    assert guided_score(batch.query, batch.key, cu_queries, cu_keys, positions, 5, 29, 0.5).equal(expected)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    num_keys = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    guiding = [sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=4))) for n in num_keys]
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (4, 1)]))
    return random_batch(num_keys, guiding, heads, kv_heads, draw(st.integers(1, 4)), draw(st.integers(0, 2**20)))


@settings(deadline=None)
@given(batches())
def test_any_batch_equals_the_loop(batch: Batch):
    assert_equals_the_loop(batch)


def test_the_number_of_rows_needs_no_data():
    batch = random_batch(*RAGGED)
    offsets = [
        tensor.to("meta") for tensor in (cumulative([3, 1, 1, 5]), cumulative(RAGGED[0]), torch.zeros(10).long())
    ]

    assert guided_score(batch.query.to("meta"), batch.key.to("meta"), *offsets, 5, 29, 0.5).shape == (50,)


def test_blocks_of_guiding_rows_bound_the_memory(monkeypatch: pytest.MonkeyPatch):
    """A block holds one row of every request here; the scores stay those of all rows at once."""
    batch = random_batch(*RAGGED)
    expected = batch.score()
    monkeypatch.setattr(import_module("duet_kernels.guided_score"), "MAX_LOGITS", 1)
    torch.testing.assert_close(batch.score(), expected, atol=1e-6, rtol=1e-6)
