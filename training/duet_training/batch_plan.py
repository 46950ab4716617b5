"""Where the rows of a padded batch go at every boundary: all lengths and places, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from duet_kernels import to_device
from duet_server.plan import RequestPlan, SegmentPlan, make_layout, make_plan, text_rows


@dataclass(frozen=True)
class BoundaryRows:
    """What one boundary does to a batch ``[B, T]``; rows count over the whole batch, sample after sample.

    Sample ``b``'s row ``i`` is ``b * T + i`` before the boundary and ``b * T' + i`` behind it; T' is ``num_rows``.
    """

    num_rows: int
    rows: Tensor
    """``[B * T']``: for every row behind the boundary the one before it; those of pools are still to be chosen."""
    is_padding: Tensor
    """``[B, T']``."""
    guiding: Tensor
    """``[queries]``, the guiding rows, sample after sample."""
    cu_queries: Tensor
    """``[B + 1]``, where each sample's guiding rows begin."""
    query_positions: Tensor
    """``[queries]``, counted from each sample's first row."""
    pool_start: Tensor
    pool_length: Tensor
    pool_sample: Tensor
    num_keep: Tensor
    target: Tensor
    """``[pools]`` each: the pool's rows, its sample, how many stay, and where their first goes in ``rows``."""
    max_queries: int
    max_pool: int
    keeps_any: bool
    """Whether there is anything to rank: not where every pool goes as a whole."""


def plan_boundaries(
    is_visual: np.ndarray, guiding: np.ndarray, lengths: np.ndarray, keep: Sequence[float], device: torch.device
) -> list[BoundaryRows | None]:
    """One entry a boundary, None where no sample drops anything.

    Args:
        is_visual, guiding: ``[B, T]`` bool, padded on the right.
        lengths: ``[B]``, the rows of each sample that are no padding.
        keep: for each boundary, the share of the entering visual tokens that the segment behind it holds.

    Raises:
        ValueError: if visual tokens would drop that no guiding row follows, or ``keep`` rises.
    """
    samples = zip(is_visual, guiding, lengths.tolist(), strict=True)
    plans = [_plan(visual[:length], guides[:length], keep) for visual, guides, length in samples]
    num_rows = [is_visual.shape[1]]
    boundaries = []
    for idx in range(len(keep)):
        boundaries.append(_boundary(plans, idx, num_rows[-1], device))
        num_rows.append(num_rows[-1] if boundaries[-1] is None else boundaries[-1].num_rows)
    return boundaries


def _plan(is_visual: np.ndarray, guides: np.ndarray, keep: Sequence[float]) -> RequestPlan:
    edges = np.flatnonzero(np.diff(is_visual, prepend=False, append=False)).reshape(-1, 2)
    layout = make_layout(len(is_visual), [(int(start), int(end)) for start, end in edges])
    plan = make_plan(layout, keep, np.flatnonzero(guides).tolist())
    last_guide = max(plan.guiding, default=-1)
    if plan.drops and last_guide < layout.pools[-1].end:
        pool = layout.pools[-1]
        raise ValueError(f"no guiding row follows the visual tokens [{pool.start}, {pool.end}), so none can be dropped")
    return plan


def _boundary(
    plans: Sequence[RequestPlan], segment_idx: int, num_before: int, device: torch.device
) -> BoundaryRows | None:
    """Nothing where nothing drops; the rows then stay as they are, padding included."""
    pairs = [plan.segments[segment_idx : segment_idx + 2] for plan in plans]
    if all(before == after for before, after in pairs):
        return None
    num_after = max(after.num_tokens for _, after in pairs)
    rows = np.zeros((len(plans), num_after), dtype=np.int64)
    is_padding = np.ones((len(plans), num_after), dtype=bool)
    pools: list[tuple[int, ...]] = []
    guides: list[list[int]] = []
    for sample, (plan, (before, after)) in enumerate(zip(plans, pairs, strict=True)):
        first_before, first_after = sample * num_before, sample * num_after
        rows[sample] = first_before
        rows[sample, _text(after)] = first_before + _text(before)
        is_padding[sample, : after.num_tokens] = False
        guides.append(text_rows(plan, segment_idx, plan.guiding) if plan.drops else [])
        for old, new in zip(before.pools, after.pools, strict=True):
            pools.append((first_before + old.start, len(old), sample, len(new), first_after + new.start))
    columns = np.array(pools, dtype=np.int64).reshape(-1, 5).T
    num_guides = [len(guide) for guide in guides]
    positions = np.concatenate([np.array(guide, dtype=np.int64) for guide in guides])
    first_rows = np.repeat(np.arange(len(plans)) * num_before, num_guides)

    def move(values: np.ndarray) -> Tensor:
        return to_device(np.ascontiguousarray(values), device, torch.int64)

    pool_start, pool_length, pool_sample, num_keep, target = (move(column) for column in columns)
    return BoundaryRows(
        num_rows=num_after,
        rows=move(rows.ravel()),
        is_padding=move(is_padding).bool(),
        guiding=move(positions + first_rows),
        cu_queries=move(np.cumsum([0, *num_guides])),
        query_positions=move(positions),
        pool_start=pool_start,
        pool_length=pool_length,
        pool_sample=pool_sample,
        num_keep=num_keep,
        target=target,
        max_queries=max(num_guides),
        max_pool=int(columns[1].max()),
        keeps_any=bool(columns[3].any()),
    )


def _text(segment: SegmentPlan) -> np.ndarray:
    """The segment's rows outside its pools."""
    is_text = np.ones(segment.num_tokens, dtype=bool)
    for pool in segment.pools:
        is_text[pool.start : pool.end] = False
    return np.flatnonzero(is_text)
