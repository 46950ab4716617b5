"""Stage 1 score: the attention that CLS pays to each patch (algorithm: DUET-VLM, arXiv 2602.18846, section on V2V)."""

import torch
import triton
import triton.language as tl

from duet_kernels.dispatch import runs_triton

TILE = 8192  # key elements per program: 16 KiB of bf16 in flight, 64 elements per thread
PATCHES_PER_PROGRAM = 64  # 8 logits per thread with 16 heads; an image of 576 patches still gives 9 programs


def cls_score(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of one query row over all keys of one layer, summed over heads; no attention matrix is built.

    Args:
        query: ``[images, heads, head_dim]``, the CLS row's query.
        key: ``[images, 1 + patches, heads, head_dim]``, CLS first.
        scale: the factor by which the layer multiplies its logits, ``head_dim ** -0.5``.

    Returns:
        ``[images, patches]`` float32: softmax over all keys, without CLS's own column. Heads are added in the same
        order in every batch. Both inputs may be strided views, such as chunks of a fused projection.
    """
    if runs_triton(key):
        return _cls_score_triton(query, key, scale)
    logits = torch.einsum("bhd,bthd->bht", query.float(), key.float()) * scale
    return logits.softmax(dim=-1).sum(dim=1)[:, 1:]


@triton.jit
def _logits_kernel(
    query_ptr,
    key_ptr,
    logits_ptr,  # [B, H, T]
    peak_ptr,  # [B, H, blocks]: each block's largest logit
    mass_ptr,  # [B, H, blocks]: each block's sum of exp(logit - peak)
    scale,
    num_keys,
    num_heads,
    head_dim,
    query_image_stride,
    query_head_stride,
    query_dim_stride,
    key_image_stride,
    key_row_stride,
    key_head_stride,
    key_dim_stride,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One image, one head, one block of keys. Consecutive programs take consecutive heads, adjacent in memory."""
    image_head = tl.program_id(0).to(tl.int64)
    image, head = image_head // num_heads, image_head % num_heads
    block, num_blocks = tl.program_id(1), tl.num_programs(1)
    row = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    dim = tl.arange(0, BLOCK_DIM)
    is_row, is_dim = row < num_keys, dim < head_dim

    query_start = query_ptr + image * query_image_stride + head * query_head_stride
    query = tl.load(query_start + dim.to(tl.int64) * query_dim_stride, mask=is_dim, other=0.0).to(tl.float32)
    key_start = key_ptr + image * key_image_stride + head * key_head_stride
    key_offset = row.to(tl.int64)[:, None] * key_row_stride + dim.to(tl.int64)[None, :] * key_dim_stride
    key = tl.load(key_start + key_offset, mask=is_row[:, None] & is_dim[None, :], other=0.0)

    logits = tl.sum(key.to(tl.float32) * query[None, :], axis=1) * scale  # [BLOCK_KEYS]
    tl.store(logits_ptr + image_head * num_keys + row, logits, mask=is_row)
    logits = tl.where(is_row, logits, float("-inf"))
    peak = tl.max(logits, axis=0)
    tl.store(peak_ptr + image_head * num_blocks + block, peak)
    tl.store(mass_ptr + image_head * num_blocks + block, tl.sum(tl.exp(logits - peak), axis=0))


@triton.jit
def _sum_over_heads_kernel(
    logits_ptr,
    peak_ptr,
    mass_ptr,
    score_ptr,  # [B, T - 1]
    num_keys,
    num_heads,
    num_blocks,
    HEADS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_PATCHES: tl.constexpr,
):
    """One image, one block of patches, all heads."""
    image = tl.program_id(0).to(tl.int64)
    image_head = image * num_heads + tl.arange(0, HEADS)  # [H]
    is_head = tl.arange(0, HEADS) < num_heads
    block = tl.arange(0, BLOCKS)
    is_block = is_head[:, None] & (block < num_blocks)[None, :]
    offset = image_head[:, None] * num_blocks + block[None, :]
    peaks = tl.load(peak_ptr + offset, mask=is_block, other=float("-inf"))  # [H, blocks]
    masses = tl.load(mass_ptr + offset, mask=is_block, other=0.0)
    peak = tl.where(is_head, tl.max(peaks, axis=1), 0.0)
    mass = tl.where(is_head, tl.sum(masses * tl.exp(peaks - peak[:, None]), axis=1), 1.0)

    patch = tl.program_id(1) * BLOCK_PATCHES + tl.arange(0, BLOCK_PATCHES)
    is_patch = patch < num_keys - 1
    logits = tl.load(
        logits_ptr + image_head[:, None] * num_keys + 1 + patch[None, :],
        mask=is_head[:, None] & is_patch[None, :],
        other=float("-inf"),
    )
    weights = tl.exp(logits - peak[:, None]) / mass[:, None]  # [H, BLOCK_PATCHES], zero past the last head
    tl.store(score_ptr + image * (num_keys - 1) + patch, tl.sum(weights, axis=0), mask=is_patch)


def _cls_score_triton(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    num_images, num_keys, num_heads, head_dim = key.shape
    assert query.shape == (num_images, num_heads, head_dim), f"{query.shape=} {key.shape=}"
    block_dim = triton.next_power_of_2(head_dim)
    block_keys = max(16, TILE // block_dim)
    num_blocks = triton.cdiv(num_keys, block_keys)
    logits = torch.empty(num_images, num_heads, num_keys, dtype=torch.float32, device=key.device)
    peak = torch.empty(num_images, num_heads, num_blocks, dtype=torch.float32, device=key.device)
    mass = torch.empty_like(peak)
    score = torch.empty(num_images, num_keys - 1, dtype=torch.float32, device=key.device)

    _logits_kernel[num_images * num_heads, num_blocks](
        query_ptr=query,
        key_ptr=key,
        logits_ptr=logits,
        peak_ptr=peak,
        mass_ptr=mass,
        scale=scale,
        num_keys=num_keys,
        num_heads=num_heads,
        head_dim=head_dim,
        query_image_stride=query.stride(0),
        query_head_stride=query.stride(1),
        query_dim_stride=query.stride(2),
        key_image_stride=key.stride(0),
        key_row_stride=key.stride(1),
        key_head_stride=key.stride(2),
        key_dim_stride=key.stride(3),
        BLOCK_KEYS=block_keys,
        BLOCK_DIM=block_dim,
        num_warps=4,
    )
    _sum_over_heads_kernel[num_images, triton.cdiv(num_keys - 1, PATCHES_PER_PROGRAM)](
        logits_ptr=logits,
        peak_ptr=peak,
        mass_ptr=mass,
        score_ptr=score,
        num_keys=num_keys,
        num_heads=num_heads,
        num_blocks=num_blocks,
        HEADS=triton.next_power_of_2(num_heads),
        BLOCKS=triton.next_power_of_2(num_blocks),
        BLOCK_PATCHES=PATCHES_PER_PROGRAM,
        num_warps=4,
    )
    return score
