"""Attention in plain torch, sequence by sequence.

It replaces FlashAttention 3, with at least the argument checks of the real one, and vLLM's Triton kernel, which would
take minutes in the interpreter.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pretend_cuda.graphs import launch

HALF = (torch.bfloat16, torch.float16)


def replace_triton_kernel(module: ModuleType) -> None:
    module.unified_attention = unified_attention  # type: ignore[attr-defined]


def unified_attention(
    q: Tensor,  # [rows, heads, head size]
    k: Tensor,  # the cache: [blocks, block size, KV heads, head size]
    v: Tensor,
    out: Tensor,
    cu_seqlens_q: Tensor,
    max_seqlen_q: int,
    seqused_k: Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    block_table: Tensor,  # [sequences, most blocks of one]
    softcap: float,
    **_: Any,
) -> None:
    assert softcap == 0, "no LLaVA asks for this"

    def run() -> None:
        _check_starts(cu_seqlens_q, max_seqlen_q, len(q))
        _check_pages(block_table, len(cu_seqlens_q) - 1, seqused_k, max_seqlen_k, k.shape[1])
        _attend(q, k, v, out, cu_seqlens_q, None, seqused_k, block_table, softmax_scale, causal)

    launch(run)


def get_scheduler_metadata(
    batch: int,
    max_q: int,
    max_k: int,
    heads: int,
    kv_heads: int,
    head_size: int,
    head_size_v: int,
    dtype: torch.dtype,
    seqused_k: Tensor,
    cu_q: Tensor,
    *_: Any,
) -> Tensor:
    assert dtype in HALF, dtype
    _check_index(seqused_k, batch)
    _check_index(cu_q, batch + 1)
    assert int(cu_q.diff().max()) <= max_q, f"{cu_q=} {max_q=}"
    assert int(seqused_k.max()) <= max_k, f"{seqused_k=} {max_k=}"
    return torch.zeros(_metadata_size(batch), dtype=torch.int32)


def fwd(
    q: Tensor,  # [rows, heads, head size]
    k: Tensor,  # [rows, KV heads, head size], or the cache: [blocks, block size, KV heads, head size]
    v: Tensor,
    k_new: None,
    v_new: None,
    q_v: None,
    out: Tensor | None,
    cu_q: Tensor,
    cu_k: Tensor | None,
    cu_k_new: None,
    seqused_q: None,
    seqused_k: Tensor | None,
    max_q: int,
    max_k: int,
    pages: Tensor | None,  # [sequences, most blocks of one]
    batch_idx: None,
    leftpad: None,
    rotary_cos: None,
    rotary_sin: None,
    rotary_lens: None,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    interleaved: bool,
    metadata: Tensor | None,
    num_splits: int,
    pack_gqa: bool | None,
    sm_margin: int,
    s_aux: None,
    cp_world: int,
    cp_rank: int,
    cp_seqused_k: None,
) -> list[Tensor]:
    batch = len(cu_q) - 1
    assert q.dtype in HALF, q.dtype
    assert q.dtype == k.dtype == v.dtype, f"{q.dtype=} {k.dtype=} {v.dtype=}"
    assert all(tensor is None or tensor.stride(-1) == 1 for tensor in (q, k, v, out)), "a head's numbers lie apart"
    assert (softcap, window_left, k_new, cp_world) == (0, -1, None, 1), "no LLaVA asks for this"
    _check_starts(cu_q, max_q, len(q))
    if metadata is not None:
        _check_index(metadata, _metadata_size(batch))
    if pages is not None:
        _check_pages(pages, batch, seqused_k, max_k, k.shape[1])
    result = torch.zeros_like(q) if out is None else out
    assert result.shape == (*q.shape[:2], v.shape[-1]), f"{result.shape=} {q.shape=} {v.shape=}"
    assert result.dtype == q.dtype, result.dtype
    _attend(q, k, v, result, cu_q, cu_k, seqused_k, pages, scale, causal)
    return [result, torch.zeros(q.shape[1], q.shape[0]), torch.empty(0), torch.empty(0)]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    cu_q: Tensor,
    cu_k: Tensor | None,
    seqused_k: Tensor | None,
    pages: Tensor | None,
    scale: float,
    causal: bool,
) -> None:
    """Keys and values are in the cache's ``pages``, or one sequence after the other, starting at ``cu_k``."""
    for index, (start, end) in enumerate(zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True)):
        if start == end:
            continue
        if pages is None:
            assert cu_k is not None
            keys, values = (tensor[int(cu_k[index]) : int(cu_k[index + 1])] for tensor in (k, v))
        else:
            assert seqused_k is not None
            keys, values = (_paged(cache, pages[index], int(seqused_k[index])) for cache in (k, v))
        out[start:end] = _attention(q[start:end], keys, values, scale, causal)


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """Attention output ``[rows, heads, head size]``; with ``causal``, the last row sees every key."""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.float().transpose(0, 1).repeat_interleave(group, 0) for tensor in (key, value))
    score = query.float().transpose(0, 1) @ key.transpose(1, 2) * scale  # [heads, rows, keys]
    if causal:
        last_seen = torch.arange(len(query))[:, None] + key.shape[1] - len(query)
        score.masked_fill_(torch.arange(key.shape[1]) > last_seen, -torch.inf)
    return (score.softmax(-1).nan_to_num(0.0) @ value).transpose(0, 1).to(query.dtype)


def _paged(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """A sequence's first ``length`` rows in the cache."""
    used = blocks[: -(-length // cache.shape[1])].long()
    return cache[used].flatten(0, 1)[:length]


def _check_starts(cu_q: Tensor, max_q: int, num_rows: int) -> None:
    _check_index(cu_q, len(cu_q))
    assert int(cu_q.diff().min()) >= 0, f"{cu_q=}"
    assert int(cu_q.diff().max()) <= max_q, f"{cu_q=} {max_q=}"
    assert int(cu_q[-1]) <= num_rows, f"{cu_q=} {num_rows=}"


def _check_pages(pages: Tensor, batch: int, lengths: Tensor | None, longest: int, block_size: int) -> None:
    assert pages.dtype == torch.int32, pages.dtype
    assert pages.stride(-1) == 1, "a sequence's blocks lie apart"
    assert len(pages) == batch, f"{pages.shape=} {batch=}"
    assert lengths is not None
    _check_index(lengths, batch)
    assert int(lengths.max()) <= min(longest, pages.shape[1] * block_size), f"{lengths=} {longest=} {pages.shape=}"


def _check_index(tensor: Tensor, *shape: int) -> None:
    assert tensor.dtype == torch.int32, tensor.dtype
    assert tensor.is_contiguous(), tensor.stride()
    assert tensor.shape == shape, f"{tensor.shape=} {shape=}"


def _metadata_size(batch: int) -> int:
    """Grows with the batch in steps, like the real size."""
    return 1 + 4 * (-(-batch // 4) * 4)
