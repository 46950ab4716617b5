"""Plans where the rows of a padded batch go at every boundary, before the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from duet_kernels import RankedRows, RankedRowsBuilder, to_device_at_once
from duet_server.plan import RequestPlan, SegmentPlan, make_layout, make_plan, text_rows


@dataclass(frozen=True)
class BatchBoundary:
    """The effect of one boundary on a batch ``[B, T]``. Rows are numbered over the whole batch, sample after sample.

    Row ``i`` of sample ``b`` is ``b * T + i`` before the boundary and ``b * T' + i`` after it; T' is ``num_rows``.
    """

    num_rows: int
    rows: Tensor  # [B * T'], the row before the boundary for every row after it; placeholders in ranked pools
    is_padding: Tensor  # [B, T']
    ranked: RankedRows | None  # its keys are all rows before the boundary; None if no pool needs scores


def plan_boundaries(
    is_visual: np.ndarray, guiding: np.ndarray, lengths: np.ndarray, keep: Sequence[float], device: torch.device
) -> list[BatchBoundary | None]:
    """One entry per boundary; None if no sample drops anything there.

    Args:
        is_visual, guiding: ``[B, T]`` bool, padded on the right.
        lengths: ``[B]``, the number of rows of each sample, without padding.
        keep: for each boundary, the share of the entering visual tokens that the segment after it holds.

    Raises:
        ValueError: if visual tokens would be dropped but no guiding row follows them, or if ``keep`` rises.
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
    last_guide = max(plan.guiding_rows, default=-1)
    if plan.drops and last_guide < layout.pools[-1].end:
        pool = layout.pools[-1]
        raise ValueError(f"no guiding row follows the visual tokens [{pool.start}, {pool.end}), so none can be dropped")
    return plan


def _boundary(
    plans: Sequence[RequestPlan], segment_idx: int, num_before: int, device: torch.device
) -> BatchBoundary | None:
    """None if no sample drops anything: all rows then stay as they are, padding included."""
    pairs = [plan.segments[segment_idx : segment_idx + 2] for plan in plans]
    if all(before == after for before, after in pairs):
        return None
    num_after = max(after.num_tokens for _, after in pairs)
    rows = np.repeat(np.arange(len(plans)) * num_before, num_after).reshape(-1, num_after)
    is_padding = np.ones_like(rows)
    builder = RankedRowsBuilder()
    for sample, (plan, (before, after)) in enumerate(zip(plans, pairs, strict=True)):
        rows[sample, : after.num_tokens] += _first_rows(before, after)
        is_padding[sample, : after.num_tokens] = 0
        first, target = sample * num_before, sample * num_after
        # A pool that is kept or dropped as a whole needs no scores.
        pools = [
            (old.start, len(old), len(new), first + old.start, target + new.start)
            for old, new in zip(before.pools, after.pools, strict=True)
            if 0 < len(new) < len(old)
        ]
        builder.add(num_before, text_rows(plan, segment_idx, plan.guiding_rows) if pools else [], pools)
    ranked = builder.build()
    arrays = [rows.ravel(), is_padding, *(ranked.pack() if ranked is not None else ())]
    rows_on_device, padding_on_device, *rest = to_device_at_once(arrays, device)
    ranked_on_device = None if ranked is None else ranked.unpack(iter(rest))
    return BatchBoundary(num_after, rows_on_device, padding_on_device.bool(), ranked_on_device)


def _first_rows(before: SegmentPlan, after: SegmentPlan) -> np.ndarray:
    """For each row after a boundary, its row before it, if every pool kept its first rows."""
    stays = np.ones(before.num_tokens, dtype=bool)
    for old, new in zip(before.pools, after.pools, strict=True):
        stays[old.start + len(new) : old.end] = False
    return np.flatnonzero(stays)
