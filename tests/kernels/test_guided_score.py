"""Stage 2's score against a loop with one softmax per guiding row and head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duet_kernels import RankedRows, guided_score
from duet_kernels.dispatch import implementation

NONE = torch.empty(0, dtype=torch.int64)
NOTHING_RANKED = RankedRows(*[NONE] * 10, max_queries=0, max_keys=0, max_pool=0)


@dataclass
class Batch:
    """Requests one after another; `guiding` and `pools` (start, length) count each request's own rows."""

    query: torch.Tensor  # [queries, heads, d]
    key: torch.Tensor  # [keys, kv_heads, d]
    num_keys: list[int]
    guiding: list[list[int]]
    pools: list[list[tuple[int, int]]]

    def score(self, scale: float = 0.5, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The score of every key, including keys outside the pools, where it is unspecified."""
        num_queries = [len(rows) for rows in self.guiding]
        cu_queries, cu_keys = cumulative(num_queries), cumulative(self.num_keys)
        columns = [
            (cu_keys[request_idx] + start, length, request_idx)
            for request_idx, pools in enumerate(self.pools)
            for start, length in pools
        ]
        pool_start, pool_length, pool_request = zip(*columns, strict=True)
        arrays = {
            "cu_queries": cu_queries,
            "cu_keys": cu_keys,
            "query_positions": [row for rows in self.guiding for row in rows],
            "pool_start": pool_start,
            "pool_length": pool_length,
            "pool_request": pool_request,
        }
        ranked = NOTHING_RANKED._replace(
            **{name: torch.tensor(array, dtype=dtype, device=self.key.device) for name, array in arrays.items()},
            max_queries=max(num_queries),
            max_keys=max(self.num_keys),
            max_pool=max(pool_length),
        )
        return guided_score(self.query, self.key, ranked, scale)

    def pool_scores(self, scale: float = 0.5) -> torch.Tensor:
        """The scores of the pools, one after another."""
        score = self.score(scale)
        assert score.dtype == torch.float32
        assert score.shape == (sum(self.num_keys),)
        return torch.cat(self.at_pools(score.split(self.num_keys)))

    def at_pools(self, scores: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        return [
            score[start : start + length]
            for score, pools in zip(scores, self.pools, strict=True)
            for start, length in pools
        ]

    def members(self) -> list[Batch]:
        queries = self.query.split([len(rows) for rows in self.guiding])
        keys = self.key.split(self.num_keys)
        return [
            Batch(*parts[:2], *([part] for part in parts[2:]))
            for parts in zip(queries, keys, self.num_keys, self.guiding, self.pools, strict=True)
        ]

    def naive(self, scale: float = 0.5) -> torch.Tensor:
        return torch.cat(self.at_pools(tuple(naive_score(member, scale) for member in self.members())))


def cumulative(lengths: list[int]) -> list[int]:
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


def naive_score(request: Batch, scale: float) -> torch.Tensor:
    """Mean over guiding rows and heads of each row's causal softmax."""
    (num_keys,), (guiding,) = request.num_keys, request.guiding
    num_heads, num_kv_heads = request.query.shape[1], request.key.shape[1]
    query, key = request.query.double().cpu(), request.key.double().cpu()
    total = [0.0] * num_keys
    for query_idx, row in enumerate(guiding):
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            logits = (scale * key[: row + 1, kv_head] @ query[query_idx, head]).tolist()
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for seen, weight in enumerate(weights):
                total[seen] += weight / sum(weights) / num_heads / len(guiding)
    return torch.tensor(total)


def random_batch(
    num_keys: list[int],
    guiding: list[list[int]],
    pools: list[list[tuple[int, int]]] | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 5,
    seed: int = 0,
) -> Batch:
    """A batch on the device of the tests. All keys are in pools unless `pools` are given."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(map(len, guiding)), heads, head_dim, generator=generator)
    key = torch.randn(sum(num_keys), kv_heads, head_dim, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Batch(query.to(device), key.to(device), num_keys, guiding, pools or [[(0, length)] for length in num_keys])


def assert_equals_the_loop(batch: Batch, scale: float = 0.5) -> None:
    torch.testing.assert_close(batch.pool_scores(scale).cpu(), batch.naive(scale), rtol=2e-5, atol=1e-6)


# A guiding row that sees no key in one split of the keys has the log-sum-exp log2(0) there, as intended.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")


@pytest.fixture(params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest, poisoned: None) -> Iterator[str]:
    with implementation(request.param):
        yield request.param


RAGGED = [13, 1, 7, 29], [[4, 9, 12], [0], [6], [2, 3, 17, 27, 28]]

# More guiding rows, keys of a pool and keys of a request than one program handles; a request with nothing to score;
# empty pools; and pools before, between and after the guiding rows of their request.
LONG = (
    [300, 5, 161, 9],
    [[0, 3, 63, 255, 256, 299], [], list(range(91, 161)), [8]],
    [[(1, 60), (100, 0), (190, 81)], [], [(17, 130)], [(0, 8), (8, 1)]],
)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_ragged_requests(kv_heads: int):
    assert_equals_the_loop(random_batch(*RAGGED, kv_heads=kv_heads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, implemented: str):
    batch = random_batch(*RAGGED)
    if (implemented, dtype, batch.key.device.type) == ("triton", torch.bfloat16, "cpu"):
        pytest.skip("Triton's interpreter multiplies no bfloat16 matrices")

    assert_equals_the_loop(replace(batch, query=batch.query.to(dtype), key=batch.key.to(dtype)))


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 112, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_head_dims(head_dim: int, dtype: torch.dtype):
    batch = random_batch([13, 6], [[4, 12], [5]], heads=2, kv_heads=1, head_dim=head_dim)

    assert_equals_the_loop(replace(batch, query=batch.query.to(dtype), key=batch.key.to(dtype)), head_dim**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_requests_of_several_blocks(dtype: torch.dtype):
    batch = random_batch(*LONG, head_dim=80, heads=3, kv_heads=1)

    assert_equals_the_loop(replace(batch, query=batch.query.to(dtype), key=batch.key.to(dtype)), 0.2)


def test_the_kernel_writes_the_pools_alone(implemented: str):
    batch = random_batch(*LONG)
    is_written = ~batch.score().isnan().cpu()
    is_pool = torch.zeros(sum(batch.num_keys), dtype=torch.bool)
    for column in batch.at_pools(is_pool.split(batch.num_keys)):
        column.fill_(True)

    assert is_written.equal(is_pool if implemented == "triton" else torch.ones_like(is_pool))


@pytest.mark.parametrize(
    ("num_keys", "guiding"),
    [(1, [0]), (6, [5]), (6, [0]), (6, [0, 1, 2, 3, 4, 5]), (33, [7, 30]), (9, [8, 2, 5])],
    ids=["one key", "last row", "first row", "every row", "rows in between", "rows in disorder"],
)
def test_one_request(num_keys: int, guiding: list[int]):
    assert_equals_the_loop(random_batch([num_keys], [guiding], head_dim=3))


@pytest.mark.parametrize("num_keys", [0, 7])
def test_no_pools(num_keys: int):
    batch = random_batch([num_keys], [[]], [[(0, 0)]])
    bounds = (torch.tensor(bound, device=batch.key.device) for bound in ([0, 0], [0, num_keys]))
    ranked = NOTHING_RANKED._replace(**dict(zip(["cu_queries", "cu_keys"], bounds, strict=True)), max_keys=num_keys)

    assert guided_score(batch.query, batch.key, ranked, 0.5).shape == (num_keys,)
    assert batch.pool_scores().shape == (0,)


def test_a_request_scores_the_same_bits_in_any_batch():
    """So that a preempted request, which runs again in another batch, keeps the same tokens."""
    batch = random_batch(*LONG, heads=2)
    alone = [member.pool_scores() for member in batch.members() if member.pools != [[]]]

    assert batch.pool_scores().equal(torch.cat(alone))


def test_neighbours_do_not_leak():
    batch = random_batch(*RAGGED)
    before = batch.score()
    batch.key[:13], batch.query[:3] = 1e4, -1e4

    assert batch.score()[13:].equal(before[13:])


def test_keys_behind_every_guiding_row_score_nothing():
    score = random_batch([9, 5], [[1, 4], [4]]).score()

    assert score[5:9].tolist() == [0.0] * 4
    assert (score[:5] > 0).all()
    torch.testing.assert_close(score.split([9, 5])[0].sum().cpu(), torch.tensor(1.0))


def test_within_a_later_pool_earlier_guides_change_no_order():
    """Prompts with several pools need this: rows before a pool add nothing to it, so only rows after it rank it."""
    batch = random_batch([20], [[6, 7, 18, 19]])
    after = replace(batch, query=batch.query[2:], guiding=[[18, 19]])

    torch.testing.assert_close(batch.score()[8:] * 4, after.score()[8:] * 2, rtol=1e-5, atol=1e-7)


def test_equal_keys_score_equally():
    batch = random_batch([8, 3], [[7], [2]])
    batch.key[:] = batch.key[0]

    torch.testing.assert_close(batch.score().cpu(), torch.tensor([1 / 8] * 8 + [1 / 3] * 3))


def test_huge_logits_stay_finite():
    assert_equals_the_loop(random_batch(*RAGGED), scale=1e4)


def test_strided_rows_and_32_bit_offsets():
    batch = random_batch(*RAGGED)
    fused = torch.cat([batch.key, batch.key], dim=-1)
    strided = replace(batch, key=fused[..., :5], query=batch.query.repeat_interleave(2, dim=1)[:, ::2])

    assert not strided.key.is_contiguous()
    assert not strided.query.is_contiguous()
    assert strided.score(dtype=torch.int32).equal(batch.score())


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    num_keys = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    guiding = [sorted(draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=4))) for n in num_keys]
    pools = []
    for n in num_keys:
        start, middle, end = sorted(draw(st.tuples(*[st.integers(0, n)] * 3)))
        pools.append([(start, middle - start), (middle, end - middle)])
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
    return random_batch(num_keys, guiding, pools, heads, kv_heads, draw(st.integers(1, 4)), draw(st.integers(0, 2**20)))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches())
def test_any_batch_equals_the_loop(batch: Batch):
    assert_equals_the_loop(batch)


def test_blocks_of_guiding_rows_bound_the_reference(monkeypatch: pytest.MonkeyPatch):
    """With one row per block, the scores are the same as for all rows at once."""
    batch = random_batch(*RAGGED)
    with implementation("reference"):
        expected = batch.score()
        monkeypatch.setattr(import_module("duet_kernels.guided_score"), "MAX_LOGITS", 1)
        torch.testing.assert_close(batch.score(), expected, atol=1e-6, rtol=1e-6)


def test_transposed_keys_are_refused_by_the_kernel():
    batch = random_batch(*RAGGED)
    transposed = replace(batch, key=batch.key.transpose(1, 2).contiguous().transpose(1, 2))

    with implementation("triton"), pytest.raises(AssertionError, match=r"key\.stride"):
        transposed.score()
