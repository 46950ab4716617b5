"""Stage 1's score against a loop with one softmax per head."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from duet_kernels import cls_score
from duet_kernels.dispatch import implementation


@pytest.fixture(params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest, poisoned: None) -> Iterator[str]:
    with implementation(request.param):
        yield request.param


def naive_score(query: torch.Tensor, key: torch.Tensor, scale: float) -> list[float]:
    """One image: `query [heads, d]`, `key [1 + patches, heads, d]`."""
    total = [0.0] * key.shape[0]
    for head in range(query.shape[0]):
        logits = [
            scale * sum(q * k for q, k in zip(query[head].tolist(), row[head].tolist(), strict=True)) for row in key
        ]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        total = [t + weight / sum(weights) for t, weight in zip(total, weights, strict=True)]
    return total[1:]


def random_inputs(
    device: torch.device, images: int, patches: int, heads: int, head_dim: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(images, heads, head_dim, generator=generator)
    key = torch.randn(images, 1 + patches, heads, head_dim, generator=generator)
    return query.to(device), key.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("images", "patches", "heads", "head_dim"), [(1, 1, 1, 1), (1, 7, 4, 5), (3, 17, 3, 8), (2, 36, 2, 3)], ids=str
)
def test_equals_the_loop(
    device: torch.device, images: int, patches: int, heads: int, head_dim: int, dtype: torch.dtype
):
    query, key = (tensor.to(dtype) for tensor in random_inputs(device, images, patches, heads, head_dim))
    score = cls_score(query, key, head_dim**-0.5)

    assert score.dtype == torch.float32
    expected = [naive_score(q, k, head_dim**-0.5) for q, k in zip(query, key, strict=True)]
    torch.testing.assert_close(score.cpu(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("patches", "head_dim"), [(126, 64), (127, 64), (128, 64), (300, 64), (150, 72), (70, 128)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_several_blocks_of_keys(device: torch.device, patches: int, head_dim: int, dtype: torch.dtype):
    query, key = (tensor.to(dtype) for tensor in random_inputs(device, 2, patches, 3, head_dim))
    score = cls_score(query, key, head_dim**-0.5)

    logits = torch.einsum("bhd,bthd->bht", query.double(), key.double()) * head_dim**-0.5
    torch.testing.assert_close(score, logits.softmax(dim=-1).sum(dim=1)[:, 1:].float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("images", "patches"), [(0, 5), (2, 0), (0, 0)], ids=str)
def test_no_images_or_no_patches(device: torch.device, images: int, patches: int):
    assert cls_score(*random_inputs(device, images, patches, 2, 4), 0.5).shape == (images, patches)


def test_reads_the_strided_halves_of_a_fused_projection(device: torch.device):
    heads, head_dim = 3, 5
    qkv = torch.randn(2, 12, 3 * heads * head_dim, generator=torch.Generator().manual_seed(1)).to(device)
    query, key, _ = qkv.chunk(3, dim=-1)
    query, key = query[:, 0].unflatten(-1, (heads, head_dim)), key.unflatten(-1, (heads, head_dim))
    assert not key.is_contiguous()

    assert cls_score(query, key, 0.3).equal(cls_score(query.contiguous(), key.contiguous(), 0.3))


def test_reads_any_strides(device: torch.device):
    query, key = random_inputs(device, 2, 9, 3, 6)
    expected = cls_score(query[..., ::2].contiguous(), key[..., ::2].contiguous(), 0.3)

    assert cls_score(query[..., ::2], key.transpose(1, 3).contiguous().transpose(1, 3)[..., ::2], 0.3).equal(expected)


def test_an_image_scores_the_same_in_any_batch(device: torch.device, implemented: str):
    query, key = random_inputs(device, 4, 9, 2, 6)
    batch = cls_score(query, key, 0.4)

    for image in range(4):
        alone = cls_score(query[image : image + 1], key[image : image + 1], 0.4)
        atol = 0 if implemented == "triton" else 1e-6
        torch.testing.assert_close(batch[image : image + 1], alone, rtol=0, atol=atol)


def test_huge_logits_stay_finite(device: torch.device):
    query, key = random_inputs(device, 1, 6, 2, 4)
    score = cls_score(query * 100, key * 100, 1.0)

    expected = torch.tensor(naive_score(query[0] * 100, key[0] * 100, 1.0))
    torch.testing.assert_close(score[0].cpu(), expected)


def test_a_block_of_hopeless_keys_scores_nothing(device: torch.device):
    """A later block of keys with far smaller logits, and one with far larger ones, than the first."""
    query, key = random_inputs(device, 1, 300, 2, 64)
    query[:], key[:] = 1.0, 1.0
    key[:, 129:] = -5.0
    key[:, 300] = 5.0
    score = cls_score(query, key, 1.0)

    torch.testing.assert_close(score[0], torch.tensor([0.0] * 299 + [2.0], device=device))


def test_equal_keys_score_equally_and_cls_keeps_its_own_share(device: torch.device):
    score = cls_score(torch.ones(1, 2, 3, device=device), torch.ones(1, 5, 2, 3, device=device), 1.0)

    torch.testing.assert_close(score, torch.full((1, 4), 2 / 5, device=device))
