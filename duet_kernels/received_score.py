"""Stage 1 score of towers without a class token: the attention that each patch receives inside its unit."""

from collections.abc import Sequence

import torch

from duet_kernels.dispatch import runs_triton, to_device_at_once
from duet_kernels.guided_score import guided_score
from duet_kernels.ranked_rows import RankedRowsBuilder

MAX_LOGITS = 1 << 17  # logits that the reference holds at a time: 512 KiB, which stay in a core's cache


def received_score(query: torch.Tensor, key: torch.Tensor, lengths: Sequence[int], scale: float) -> torch.Tensor:
    """Softmax of every row over all keys of its unit, summed over the unit's rows, mean over heads.

    No attention matrix is built. It takes about as long as the attention of one layer.

    Args:
        query: ``[rows, heads, head_dim]``, unit after unit.
        key: ``[rows, kv_heads, head_dim]``, the same rows; ``heads`` is a multiple of ``kv_heads`` and query head ``h``
            reads key head ``h // (heads // kv_heads)``. Both may be strided views.
        lengths: rows of each unit, at least 1.
        scale: the factor by which the layer multiplies its logits.

    Returns:
        ``[rows]`` float32. The scores of a unit sum to its length. A unit scores the same bits in every batch.
    """
    assert sum(lengths) == len(query) == len(key), f"{sum(lengths)=} {query.shape=} {key.shape=}"
    assert min(lengths, default=1) >= 1, f"{lengths=}"
    return _triton(query, key, lengths, scale) if runs_triton(key) else _reference(query, key, lengths, scale)


def _reference(query: torch.Tensor, key: torch.Tensor, lengths: Sequence[int], scale: float) -> torch.Tensor:
    units = zip(query.split(list(lengths)), key.split(list(lengths)), strict=True)
    scores = [_unit_score(unit_query, unit_key, scale) for unit_query, unit_key in units]
    return torch.cat([query.new_empty(0, dtype=torch.float32), *scores])


def _unit_score(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """One head and one block of queries at a time."""
    (num_rows, num_heads, _), num_kv_heads = query.shape, key.shape[1]
    query, key = (rows.float().transpose(0, 1).contiguous() for rows in (query, key))  # [heads, rows, head_dim]
    score = query.new_zeros(num_rows)
    for head in range(num_heads):
        head_key = key[head * num_kv_heads // num_heads].T * scale
        for block in query[head].split(max(1, MAX_LOGITS // num_rows)):
            score += (block @ head_key).softmax(dim=-1).sum(dim=0)
    return score / num_heads


def _triton(query: torch.Tensor, key: torch.Tensor, lengths: Sequence[int], scale: float) -> torch.Tensor:
    """``guided_score`` with every row guiding at the unit's last position, where it sees the whole unit, its pool."""
    builder = RankedRowsBuilder()
    for length in lengths:
        builder.add(length, [length - 1] * length, [(0, length, 0, 0, 0)])
    ranked = builder.build()
    if ranked is None:
        return query.new_empty(0, dtype=torch.float32)
    rows_of_unit = ranked.pool_length.repeat(ranked.pool_length)
    *arrays, rows_of_unit = to_device_at_once([*ranked.pack(), rows_of_unit], key.device)
    return guided_score(query, key, ranked.unpack(iter(arrays)), scale) * rows_of_unit
