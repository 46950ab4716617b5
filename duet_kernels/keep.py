"""Stage 2 keep: the highest-scored visual tokens of every pool, in their original order."""

import torch
import triton
import triton.language as tl

from duet_kernels.dispatch import runs_triton
from duet_kernels.ranked_rows import RankedRows
from duet_kernels.sort_key import sort_key

BLOCK = 1024  # tokens at a time: a LLaVA pool (576) is one block, a longer one is read again from the L1 cache


def keep_highest(score: torch.Tensor, ranked: RankedRows, rows: torch.Tensor) -> None:
    """Write the top-k rows of every pool into ``rows``, ascending. Each pool has its own k; ties go to the lower index.

    Args:
        score: ``[keys]`` float32, no NaN.
        ranked: the pools, on the same device.
        rows: ``[n]`` int64, written in place: ``rows[target[p] : target[p] + num_keep[p]]`` are ``first_row[p] + i``
            for the kept tokens ``i`` of pool ``p``, counted from its first token. Other entries stay as they are.
    """
    if runs_triton(score):
        _triton(score, ranked, rows)
    else:
        _reference(score, ranked, rows)


def _reference(score: torch.Tensor, ranked: RankedRows, rows: torch.Tensor) -> None:
    columns = ranked.pool_start, ranked.pool_length, ranked.num_keep, ranked.first_row, ranked.target
    for start, length, keep, first, target in zip(*(column.tolist() for column in columns), strict=True):
        by_score = score[start : start + length].argsort(descending=True, stable=True)
        rows[target : target + keep] = first + by_score[:keep].sort().values


@triton.jit
def _ordered(score_ptr, index, inside, stride):
    return sort_key(tl.load(score_ptr + index * stride, mask=inside, other=0.0))


@triton.jit(do_not_specialize=["start_ptr", "length_ptr", "keep_ptr", "first_row_ptr", "target_ptr", "rows_ptr"])
def _keep_kernel(
    score_ptr,
    start_ptr,
    length_ptr,
    keep_ptr,
    first_row_ptr,
    target_ptr,
    rows_ptr,
    score_stride,
    BLOCK: tl.constexpr,
):
    """One pool: find the score at the cut by bisection, then write the tokens above it and the first tokens at it."""
    pool = tl.program_id(0)
    length = tl.load(length_ptr + pool).to(tl.int32)
    keep = tl.load(keep_ptr + pool).to(tl.int32)
    if keep == 0:
        return
    score_ptr += tl.load(start_ptr + pool).to(tl.int64) * score_stride
    rows_ptr += tl.load(target_ptr + pool).to(tl.int64)
    first_row = tl.load(first_row_ptr + pool).to(tl.int64)
    offset = tl.arange(0, BLOCK)

    # At least `keep` tokens have a key of `low` or more; `num_above` tokens, fewer than `keep`, have `high` or more.
    low = tl.full([], -(2**31), tl.int64)
    high = tl.full([], 2**31, tl.int64)
    num_from_low = length
    num_above = tl.full([], 0, tl.int32)
    while (high - low > 1) & (num_from_low != keep):
        middle = (low + high) >> 1
        counts = tl.zeros([BLOCK], tl.int32)
        for block in range(0, length, BLOCK):
            index = block + offset
            inside = index < length
            is_above = inside & (_ordered(score_ptr, index, inside, score_stride) >= middle.to(tl.int32))
            counts += is_above.to(tl.int32)
        count = tl.sum(counts)
        if count >= keep:
            low, num_from_low = middle, count
        else:
            high, num_above = middle, count

    num_ties, num_kept = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for block in range(0, length, BLOCK):
        index = block + offset
        inside = index < length
        ordered = _ordered(score_ptr, index, inside, score_stride).to(tl.int64)
        above = inside & (ordered >= high)
        tie = (inside & (ordered >= low) & (ordered < high)).to(tl.int32)
        tie_place = num_ties + tl.cumsum(tie) - tie
        kept = above | ((tie == 1) & (tie_place < keep - num_above))
        place = num_kept + tl.cumsum(kept.to(tl.int32)) - 1
        tl.store(rows_ptr + place, first_row + index, mask=kept)
        num_ties += tl.sum(tie)
        num_kept += tl.sum(kept.to(tl.int32))


def _triton(score: torch.Tensor, ranked: RankedRows, rows: torch.Tensor) -> None:
    num_pools = len(ranked.pool_start)
    pools = ranked.pool_start, ranked.pool_length, ranked.num_keep, ranked.first_row, ranked.target
    assert score.dtype == torch.float32, f"{score.dtype=}"
    assert rows.dtype == torch.int64, f"{rows.dtype=}"
    assert rows.is_contiguous(), f"{rows.stride()=}"
    assert all(column.shape == (num_pools,) for column in pools), f"{[column.shape for column in pools]}"
    assert all(column.is_contiguous() for column in pools), f"{[column.stride() for column in pools]}"
    if num_pools > 0:
        _keep_kernel[num_pools,](
            score_ptr=score,
            start_ptr=ranked.pool_start,
            length_ptr=ranked.pool_length,
            keep_ptr=ranked.num_keep,
            first_row_ptr=ranked.first_row,
            target_ptr=ranked.target,
            rows_ptr=rows,
            score_stride=score.stride(0),
            BLOCK=BLOCK,
            num_warps=4,
        )
