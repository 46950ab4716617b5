"""The attention received, against a dense softmax."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from duet_kernels import implementation, received_score
from duet_kernels.guided_score import MAX_LOGITS


@pytest.fixture(params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest, poisoned: None):
    with implementation(request.param):
        yield request.param


def dense(query: torch.Tensor, key: torch.Tensor, lengths: list[int], scale: float) -> torch.Tensor:
    scores = []
    for queries, keys in zip(query.double().split(lengths), key.double().split(lengths), strict=True):
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        attention = (torch.einsum("qhd,khd->hqk", queries, keys) * scale).softmax(dim=-1)
        scores.append(attention.sum(dim=1).mean(dim=0))
    return torch.cat(scores).float()


def random_rows(num_rows: int, heads: int, kv_heads: int, head_dim: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(num_rows, num, head_dim, generator=generator) for num in (heads, kv_heads))


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "head_dim"),
    [
        ([1], 1, 1, 16),
        ([5, 1, 64], 2, 2, 16),
        ([63, 65, 128], 2, 1, 32),
        ([255, 3, 256, 257], 2, 2, 16),  # around the edge of a split of the keys
        ([600], 1, 1, 72),
    ],
    ids=str,
)
def test_units_are_scored_on_their_own(device, lengths, heads, kv_heads, head_dim):
    query, key = random_rows(sum(lengths), heads, kv_heads, head_dim)
    found = received_score(query.to(device), key.to(device), lengths, head_dim**-0.5).cpu()
    torch.testing.assert_close(found, dense(query, key, lengths, head_dim**-0.5), rtol=1e-4, atol=1e-5)
    sums = torch.stack([unit.sum() for unit in found.split(lengths)])
    torch.testing.assert_close(sums, torch.tensor(lengths, dtype=torch.float32), rtol=1e-4, atol=1e-4)


def test_heads_may_be_views_of_a_fused_projection(device):
    fused = torch.randn(70, 3, 2, 16, generator=torch.Generator().manual_seed(1)).to(device)
    query, key = fused[:, 0], fused[:, 1]
    found = received_score(query, key, [30, 40], 0.25)
    assert torch.equal(found, received_score(query.contiguous(), key.contiguous(), [30, 40], 0.25))


def test_half_precision_is_accumulated_in_float32(device):
    query, key = (rows.to(torch.float16) for rows in random_rows(90, 2, 2, 32))
    found = received_score(query.to(device), key.to(device), [50, 40], 0.2).cpu()
    torch.testing.assert_close(found, dense(query, key, [50, 40], 0.2), rtol=2e-2, atol=1e-3)


def test_no_units(device):
    query, key = random_rows(0, 2, 2, 16)
    assert received_score(query.to(device), key.to(device), [], 1.0).shape == (0,)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any operation returned."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return result


def test_the_reference_never_holds_the_whole_attention(implemented):
    if implemented == "triton":
        pytest.skip("the kernels hold a tile of it")
    query, key = random_rows(6000, 1, 1, 16)
    with LargestTensor() as seen:
        received_score(query, key, [6000], 0.25)
    assert seen.most <= MAX_LOGITS < 6000 * 6000
