"""Stage 2 keep: the highest-scored visual tokens of every pool, in their original order."""

import torch


def keep_highest(
    score: torch.Tensor,
    pool_start: torch.Tensor,
    pool_length: torch.Tensor,
    num_keep: torch.Tensor,
    max_length: int,
    total_keep: int,
) -> torch.Tensor:
    """Top-k per pool with a different k each, ties to the lower index.

    Args:
        score: ``[rows]`` float32, no NaN.
        pool_start, pool_length: ``[pools]``, each pool's rows ``[start, start + length)`` in ``score``.
        num_keep: ``[pools]``, at most the pool's length.
        max_length: longest pool.
        total_keep: ``num_keep.sum()``, known to the caller so that the result's size needs no device copy.

    Returns:
        ``[total_keep]`` int64 rows of ``score``, pool after pool, ascending within each.
    """
    offset = torch.arange(max_length, device=score.device)
    row = pool_start[:, None].long() + offset  # [P, L]
    is_real = offset < pool_length[:, None]
    padded = score[row.clamp(max=score.shape[0] - 1)].masked_fill(~is_real, -torch.inf)
    by_score = padded.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(by_score).scatter_(1, by_score, offset.expand_as(by_score))
    kept = rank < num_keep[:, None]

    first = num_keep.long().cumsum(0) - num_keep
    # Rows that are not kept all land on one slot past the end: fixed sizes instead of a boolean mask.
    target = torch.where(kept, first[:, None] + kept.cumsum(dim=1) - 1, total_keep)
    result = row.new_empty(total_keep + 1).scatter_(0, target.flatten(), row.flatten())
    return result[:total_keep]
