"""The attention that patches receive, against a dense softmax."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from duet_kernels import implementation, received_score

# A row that sees no key in one split of the keys has the log-sum-exp log2(0) there, as intended.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")

MODULE = import_module("duet_kernels.received_score")  # the package's attribute of this name is the function


@pytest.fixture(params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest, poisoned: None) -> Iterator[str]:
    with implementation(request.param):
        yield request.param


def dense(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scale: float) -> torch.Tensor:
    scores = []
    for queries, keys in zip(query.double().split(lengths), key.double().split(lengths), strict=True):
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        attention = (torch.einsum("qhd,khd->hqk", queries, keys) * scale).softmax(dim=-1)
        scores.append(attention.sum(dim=1).mean(dim=0))
    return torch.cat(scores).float()


def random_rows(
    device: torch.device, num_rows: int, heads: int = 2, kv_heads: int = 2, head_dim: int = 16, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(num_rows, num, head_dim, generator=generator) for num in (heads, kv_heads))
    return query.to(device), key.to(device)


def assert_equals_dense(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scale: float) -> None:
    found = received_score(query, key, lengths, scale)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense(query, key, lengths, scale), rtol=2e-5, atol=2e-6)
    sums = torch.stack([unit.sum() for unit in found.cpu().split(lengths)])
    torch.testing.assert_close(sums, torch.tensor(lengths, dtype=torch.float32), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim"),
    [
        ([1], 1, 1, 16),
        ([5, 1, 64], 2, 2, 16),
        ([63, 65, 128], 4, 2, 80),
        ([7, 40], 6, 2, 5),
        ([255, 3, 256, 257], 2, 1, 16),  # around the edge of a split of the keys
        ([600], 1, 1, 72),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_dense_softmax(
    device: torch.device,
    implemented: str,
    dtype: torch.dtype,
    lengths: list[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
):
    if (implemented, dtype, device.type) == ("triton", torch.bfloat16, "cpu"):
        pytest.skip("Triton's interpreter multiplies no bfloat16 matrices")
    query, key = random_rows(device, sum(lengths), heads, kv_heads, head_dim)

    assert_equals_dense(query.to(dtype), key.to(dtype), lengths, head_dim**-0.5)


def test_heads_may_be_views_of_a_fused_projection(device: torch.device):
    fused = torch.randn(70, 3, 2, 16, generator=torch.Generator().manual_seed(1)).to(device)
    query, key = fused[:, 0], fused[:, 1]

    assert not key.is_contiguous()
    found = received_score(query, key, [30, 40], 0.25)
    assert found.equal(received_score(query.contiguous(), key.contiguous(), [30, 40], 0.25))


def test_a_unit_scores_the_same_bits_in_any_batch(device: torch.device):
    lengths = [65, 1, 300, 30]
    query, key = random_rows(device, sum(lengths))
    alone = [
        received_score(*rows, [length], 0.25)
        for *rows, length in zip(query.split(lengths), key.split(lengths), lengths, strict=True)
    ]

    assert received_score(query, key, lengths, 0.25).equal(torch.cat(alone))


def test_huge_logits_stay_finite(device: torch.device):
    assert_equals_dense(*random_rows(device, 70), [30, 40], 1e4)


def test_equal_keys_receive_equally(device: torch.device):
    query, key = random_rows(device, 70)
    key[:] = key[0]

    torch.testing.assert_close(received_score(query, key, [1, 69], 0.25), torch.ones(70, device=device))


def test_no_units(device: torch.device):
    assert received_score(*random_rows(device, 0), [], 1.0).shape == (0,)


@pytest.mark.parametrize("lengths", [[4], [3, 3], [5, 0]], ids=str)
def test_lengths_that_do_not_fit_are_refused(device: torch.device, lengths: list[int]):
    with pytest.raises(AssertionError, match="lengths"):
        received_score(*random_rows(device, 5), lengths, 1.0)


@pytest.mark.parametrize("max_logits", [1, 3 * 40, 7 * 30])
def test_blocks_of_queries_change_no_score_of_the_reference(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, max_logits: int
):
    """Blocks of one query, and blocks whose last one is shorter."""
    query, key = random_rows(device, 70)
    with implementation("reference"):
        monkeypatch.setattr(MODULE, "MAX_LOGITS", max_logits)
        assert_equals_dense(query, key, [30, 40], 0.25)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returned."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.num_bytes = max(self.num_bytes, tensor.nbytes)
        return result


def test_no_attention_matrix_is_built(device: torch.device, monkeypatch: pytest.MonkeyPatch):
    num_rows, max_logits = 600, 1 << 14
    monkeypatch.setattr(MODULE, "MAX_LOGITS", max_logits)
    query, key = random_rows(device, num_rows, heads=1, kv_heads=1)
    with LargestTensor() as seen:
        received_score(query, key, [num_rows], 0.25)

    assert query.nbytes <= seen.num_bytes <= 4 * max_logits < 4 * num_rows**2
