"""Stage 1 score of towers without a class token: the attention that each patch receives inside its unit."""

from collections.abc import Sequence

import torch

from duet_kernels.dispatch import to_device_at_once
from duet_kernels.guided_score import guided_score
from duet_kernels.ranked_rows import RankedRowsBuilder


def received_score(query: torch.Tensor, key: torch.Tensor, lengths: Sequence[int], scale: float) -> torch.Tensor:
    """Softmax of every row over all keys of its unit, summed over the unit's rows, mean over heads.

    It is :func:`guided_score` with every row guiding at the unit's last position, and the unit as the pool. So no
    attention matrix is built. Its cost is that of one attention layer.

    Args:
        query: ``[rows, heads, head_dim]``, unit after unit.
        key: ``[rows, kv_heads, head_dim]``, the same rows.
        lengths: rows of each unit, at least 1.
        scale: the factor by which the layer multiplies its logits.

    Returns:
        ``[rows]`` float32. The scores of a unit sum to its length.
    """
    assert sum(lengths) == len(query) == len(key), f"{sum(lengths)=} {query.shape=} {key.shape=}"
    builder = RankedRowsBuilder()
    for length in lengths:
        builder.add(length, [length - 1] * length, [(0, length, 0, 0, 0)])
    ranked = builder.build()
    if ranked is None:
        return query.new_empty(0, dtype=torch.float32)
    *arrays, rows_of_unit = to_device_at_once(
        [*ranked.pack(), ranked.pool_length.repeat(ranked.pool_length)], key.device
    )
    return guided_score(query, key, ranked.unpack(iter(arrays)), scale) * rows_of_unit
