"""Stage 2 score: the attention that guiding text rows pay to the visual keys of their own request."""

import math
from itertools import pairwise

import torch
import triton
import triton.language as tl

from duet_kernels.dispatch import runs_triton
from duet_kernels.ranked_rows import RankedRows

MAX_LOGITS = 1 << 24  # logits that the reference holds at a time, over all heads: 64 MiB

# All sizes are fixed, so that a request's scores are bit-identical in every batch.
BLOCK_QUERIES = 64  # the smallest tile of Hopper's matrix units; holds the guiding rows of most prompts
BLOCK_KEYS = 64  # small enough that one LLaVA request gives every multiprocessor a program
SPLIT_KEYS = 256  # keys per program of the log-sum-exp, so that the few rows of one request fill the device too
BLOCK_SUM = 64


def guided_score(query: torch.Tensor, key: torch.Tensor, ranked: RankedRows, scale: float) -> torch.Tensor:
    """Causal softmax of each guiding row over its request's keys, mean over heads and over the request's guiding rows.

    Args:
        query: ``[queries, heads, head_dim]``, the guiding rows' queries, rotary applied, request after request.
        key: ``[keys, kv_heads, head_dim]``, all rows of the same requests; ``heads`` is a multiple of ``kv_heads``
            and query head ``h`` reads key head ``h // (heads // kv_heads)``.
        ranked: the requests, their guiding rows and their pools, on the same device.
        scale: the factor by which the layer multiplies its logits.

    Returns:
        ``[keys]`` float32, set for the keys of the pools and unspecified for all others. A guiding row adds nothing to
        keys after it, so only the guiding rows after a pool decide the order inside the pool.
    """
    return _triton(query, key, ranked, scale) if runs_triton(key) else _reference(query, key, ranked, scale)


def _reference(query: torch.Tensor, key: torch.Tensor, ranked: RankedRows, scale: float) -> torch.Tensor:
    score = key.new_zeros(key.shape[0], dtype=torch.float32)
    bounds = zip(pairwise(ranked.cu_queries.tolist()), pairwise(ranked.cu_keys.tolist()), strict=True)
    for (query_start, query_end), (key_start, key_end) in bounds:
        queries, keys = slice(query_start, query_end), slice(key_start, key_end)
        score[keys] = _request_score(query[queries], key[keys], ranked.query_positions[queries], scale)
    return score


def _request_score(query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, scale: float) -> torch.Tensor:
    (num_queries, num_heads, _), (num_keys, num_kv_heads, _) = query.shape, key.shape
    score, key = key.new_zeros(num_keys, dtype=torch.float32), key.float()
    key_idx = torch.arange(num_keys, device=key.device)
    for rows in torch.arange(num_queries).split(max(1, MAX_LOGITS // (num_heads * max(num_keys, 1)))):
        block = query[rows].float().unflatten(1, (num_kv_heads, -1))
        logits = torch.einsum("qhgd,khd->hgqk", block, key) * scale
        score += logits.masked_fill(key_idx > positions[rows, None], -torch.inf).softmax(dim=-1).sum(dim=(0, 1, 2))
    return score / (num_heads * max(num_queries, 1))


@triton.jit
def _logits(query_ptrs, is_query, key_ptrs, is_key, HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr):
    """``[queries, keys]`` float32: dot products of the vectors that begin at the pointers."""
    logits = tl.zeros([query_ptrs.shape[0], key_ptrs.shape[0]], tl.float32)
    for first in tl.static_range(0, HEAD_DIM, CHUNK):
        dim = first + tl.arange(0, CHUNK)
        inside = dim < HEAD_DIM
        query = tl.load(query_ptrs[:, None] + dim[None, :], mask=is_query[:, None] & inside[None, :], other=0.0)
        key = tl.load(key_ptrs[None, :] + dim[:, None], mask=inside[:, None] & is_key[None, :], other=0.0)
        logits = tl.dot(query, key, logits, input_precision="ieee")
    return logits


# All kernels scale logits by log2(e), since the hardware computes exp2.
@triton.jit(do_not_specialize=["cu_queries_ptr", "cu_keys_ptr", "position_ptr", "num_splits", "total_queries"])
def _log_sum_exp_kernel(
    query_ptr,
    key_ptr,
    cu_queries_ptr,
    cu_keys_ptr,
    position_ptr,
    lse_ptr,  # [splits, heads, queries]
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    num_splits,
    total_queries,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """One block of a request's guiding rows, one head, one split of the keys: each row's log-sum-exp over the split."""
    split, head, request = tl.program_id(0) % num_splits, tl.program_id(1), tl.program_id(2)
    first_query = tl.load(cu_queries_ptr + request).to(tl.int64)
    num_queries = tl.load(cu_queries_ptr + request + 1).to(tl.int64) - first_query
    query_idx = (tl.program_id(0) // num_splits) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    is_query = query_idx < num_queries
    row = first_query + query_idx
    position = tl.load(position_ptr + row, mask=is_query, other=-1).to(tl.int32)
    start = split * SPLIT_KEYS
    end = tl.minimum(start + SPLIT_KEYS, tl.max(position) + 1)
    if start >= end:
        return

    query_ptrs = query_ptr + head.to(tl.int64) * query_head_stride + row * query_stride
    key_ptr += tl.load(cu_keys_ptr + request).to(tl.int64) * key_stride + (head // GROUP).to(tl.int64) * key_head_stride
    # Finite, because a row that sees no key of this split would compute inf - inf. Its result is log2(0).
    peak = tl.full([BLOCK_QUERIES], -3e38, tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    for first in range(start, end, BLOCK_KEYS):
        key_idx = first + tl.arange(0, BLOCK_KEYS)
        key_ptrs = key_ptr + key_idx.to(tl.int64) * key_stride
        logits = _logits(query_ptrs, is_query, key_ptrs, key_idx < end, HEAD_DIM, CHUNK) * scale
        logits = tl.where(key_idx[None, :] <= position[:, None], logits, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        total = total * tl.exp2(peak - new_peak) + tl.sum(tl.exp2(logits - new_peak[:, None]), axis=1)
        peak = new_peak
    slot = (split * tl.num_programs(1) + head).to(tl.int64) * total_queries + row
    tl.store(lse_ptr + slot, peak + tl.log2(total), mask=is_query)


@triton.jit(do_not_specialize=["position_ptr", "total_queries"])
def _merge_splits_kernel(
    position_ptr,
    lse_ptr,  # [splits, heads, queries]; the first split gets the log-sum-exp over all splits
    total_queries,
    BLOCK_QUERIES: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """One block of guiding rows, one head. A row reads the splits up to its own position, since no others are set."""
    row = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    is_query = row < total_queries
    last_split = tl.load(position_ptr + row, mask=is_query, other=-1).to(tl.int32) // SPLIT_KEYS
    lse_ptr += tl.program_id(1).to(tl.int64) * total_queries + row
    split_stride = tl.num_programs(1).to(tl.int64) * total_queries
    lse = tl.load(lse_ptr, mask=is_query, other=0.0)
    for split in range(1, tl.max(last_split) + 1):
        more = tl.load(lse_ptr + split * split_stride, mask=is_query & (split <= last_split), other=float("-inf"))
        peak = tl.maximum(lse, more)
        lse = peak + tl.log2(tl.exp2(lse - peak) + tl.exp2(more - peak))
    tl.store(lse_ptr, lse, mask=is_query)


@triton.jit(
    do_not_specialize=[
        "cu_queries_ptr",
        "cu_keys_ptr",
        "position_ptr",
        "pool_start_ptr",
        "pool_length_ptr",
        "pool_request_ptr",
        "total_queries",
        "total_keys",
    ]
)
def _attention_kernel(
    query_ptr,
    key_ptr,
    cu_queries_ptr,
    cu_keys_ptr,
    position_ptr,
    pool_start_ptr,
    pool_length_ptr,
    pool_request_ptr,
    lse_ptr,  # [heads, queries]: the first split, which holds all of them
    attention_ptr,  # [heads, keys]
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    total_queries,
    total_keys,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """One block of a pool's keys, one head: the sum of the attention from all guiding rows."""
    head, pool = tl.program_id(1), tl.program_id(2)
    pool_idx = tl.program_id(0) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    length = tl.load(pool_length_ptr + pool).to(tl.int32)
    if tl.program_id(0) * BLOCK_KEYS >= length:
        return
    is_key = pool_idx < length
    column = tl.load(pool_start_ptr + pool).to(tl.int64) + pool_idx
    request = tl.load(pool_request_ptr + pool).to(tl.int64)
    key_idx = (column - tl.load(cu_keys_ptr + request)).to(tl.int32)
    first_query = tl.load(cu_queries_ptr + request).to(tl.int64)
    num_queries = (tl.load(cu_queries_ptr + request + 1) - first_query).to(tl.int32)

    query_ptr += head.to(tl.int64) * query_head_stride + first_query * query_stride
    key_ptrs = key_ptr + column * key_stride + (head // GROUP).to(tl.int64) * key_head_stride
    lse_ptr += head.to(tl.int64) * total_queries + first_query
    attention = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
    for first in range(0, num_queries, BLOCK_QUERIES):
        query_idx = first + tl.arange(0, BLOCK_QUERIES)
        is_query = query_idx < num_queries
        position = tl.load(position_ptr + first_query + query_idx, mask=is_query, other=-1).to(tl.int32)
        query_ptrs = query_ptr + query_idx.to(tl.int64) * query_stride
        logits = _logits(query_ptrs, is_query, key_ptrs, is_key, HEAD_DIM, CHUNK) * scale
        lse = tl.load(lse_ptr + query_idx, mask=is_query, other=0.0)
        logits = tl.where(key_idx[None, :] <= position[:, None], logits - lse[:, None], float("-inf"))
        attention += tl.exp2(logits)
    tl.store(attention_ptr + head.to(tl.int64) * total_keys + column, tl.sum(attention, axis=0), mask=is_key)


@triton.jit(do_not_specialize=["cu_queries_ptr", "pool_start_ptr", "pool_length_ptr", "pool_request_ptr", "total_keys"])
def _mean_kernel(
    attention_ptr,  # [heads, keys]
    cu_queries_ptr,
    pool_start_ptr,
    pool_length_ptr,
    pool_request_ptr,
    score_ptr,
    total_keys,
    NUM_HEADS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """One block of a pool's keys: the mean over heads and guiding rows."""
    pool = tl.program_id(1)
    pool_idx = tl.program_id(0) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    is_key = pool_idx < tl.load(pool_length_ptr + pool)
    column = tl.load(pool_start_ptr + pool).to(tl.int64) + pool_idx
    request = tl.load(pool_request_ptr + pool).to(tl.int64)
    num_queries = tl.load(cu_queries_ptr + request + 1) - tl.load(cu_queries_ptr + request)
    head = tl.arange(0, BLOCK_HEADS)
    mask = (head < NUM_HEADS)[:, None] & is_key[None, :]
    attention = tl.load(attention_ptr + head.to(tl.int64)[:, None] * total_keys + column[None, :], mask=mask, other=0.0)
    score = tl.sum(attention, axis=0) / (NUM_HEADS * num_queries).to(tl.float32)
    tl.store(score_ptr + column, score, mask=is_key)


def _triton(query: torch.Tensor, key: torch.Tensor, ranked: RankedRows, scale: float) -> torch.Tensor:
    (num_queries, num_heads, head_dim), (num_keys, num_kv_heads, _) = query.shape, key.shape
    assert query.dtype == key.dtype, f"{query.dtype=} {key.dtype=}"
    assert key.shape[2] == head_dim, f"{query.shape=} {key.shape=}"
    assert num_heads % num_kv_heads == 0, f"{num_heads=} {num_kv_heads=}"
    assert query.stride(2) == key.stride(2) == 1, f"{query.stride()=} {key.stride()=}"
    assert all(array.is_contiguous() for array in ranked.pack()), f"{[array.stride() for array in ranked.pack()]}"
    num_requests, num_pools = len(ranked.cu_queries) - 1, len(ranked.pool_start)
    score = key.new_empty(num_keys, dtype=torch.float32)
    if num_pools == 0 or ranked.max_pool == 0:
        return score

    num_splits = triton.cdiv(ranked.max_keys, SPLIT_KEYS)
    lse = score.new_empty(num_splits, num_heads, num_queries)
    attention = score.new_empty(num_heads, num_keys)
    # float32 is multiplied in chunks. Matrix units do not take it at full precision, and on other units the operands of
    # a whole head would spill registers.
    chunk, num_warps = (16, 8) if key.dtype == torch.float32 else (max(16, triton.next_power_of_2(head_dim)), 4)
    shared = {
        "query_ptr": query,
        "key_ptr": key,
        "cu_queries_ptr": ranked.cu_queries,
        "cu_keys_ptr": ranked.cu_keys,
        "position_ptr": ranked.query_positions,
        "lse_ptr": lse,
        "query_stride": query.stride(0),
        "query_head_stride": query.stride(1),
        "key_stride": key.stride(0),
        "key_head_stride": key.stride(1),
        "total_queries": num_queries,
        "scale": scale * math.log2(math.e),
        "GROUP": num_heads // num_kv_heads,
        "HEAD_DIM": head_dim,
        "CHUNK": chunk,
        "BLOCK_QUERIES": BLOCK_QUERIES,
        "BLOCK_KEYS": BLOCK_KEYS,
        "SPLIT_KEYS": SPLIT_KEYS,
        "num_warps": num_warps,
    }
    num_blocks = triton.cdiv(ranked.max_queries, BLOCK_QUERIES) * num_splits
    _log_sum_exp_kernel[num_blocks, num_heads, num_requests](**shared, num_splits=num_splits, num_stages=3)
    if num_splits > 1:
        _merge_splits_kernel[triton.cdiv(num_queries, BLOCK_QUERIES), num_heads](
            position_ptr=ranked.query_positions,
            lse_ptr=lse,
            total_queries=num_queries,
            BLOCK_QUERIES=BLOCK_QUERIES,
            SPLIT_KEYS=SPLIT_KEYS,
        )
    _attention_kernel[triton.cdiv(ranked.max_pool, BLOCK_KEYS), num_heads, num_pools](
        **shared,
        pool_start_ptr=ranked.pool_start,
        pool_length_ptr=ranked.pool_length,
        pool_request_ptr=ranked.pool_request,
        attention_ptr=attention,
        total_keys=num_keys,
        num_stages=2,
    )
    _mean_kernel[triton.cdiv(ranked.max_pool, BLOCK_SUM), num_pools](
        attention_ptr=attention,
        cu_queries_ptr=ranked.cu_queries,
        pool_start_ptr=ranked.pool_start,
        pool_length_ptr=ranked.pool_length,
        pool_request_ptr=ranked.pool_request,
        score_ptr=score,
        total_keys=num_keys,
        NUM_HEADS=num_heads,
        BLOCK_HEADS=triton.next_power_of_2(num_heads),
        BLOCK_KEYS=BLOCK_SUM,
        num_warps=4,
    )
    return score
