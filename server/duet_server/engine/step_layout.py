"""Where every row of one engine step lies in every segment, planned on the host before the forward pass.

The device decides only *which* visual tokens survive. The host knows how many, and so all lengths and positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch

from duet_kernels import RankedRows, RankedRowsBuilder, to_device_at_once
from duet_kernels.ranked_rows import Array
from duet_server.plan import RequestPlan, text_rows


@dataclass(frozen=True, slots=True)
class StepBoundary:
    """The rows of one segment that go on into the next; numpy while planned, torch on the device."""

    rows: Array  # [rows after] rows of the segment before; placeholders for the ranked pools
    key_rows: Array | None = None  # [keys] rows of the segment before that are the keys of ``ranked``
    ranked: RankedRows | None = None  # None if no pool needs scores
    structure: Array | None = (
        None  # [structure rows] of ranked pools, as rows of the whole batch; None if there are none
    )

    def pack(self) -> list[Array]:
        """The arrays, in the order in which they move to a device together."""
        ranked = [] if self.ranked is None else [self.key_rows, *self.ranked.pack()]
        return [self.rows, *ranked, *([] if self.structure is None else [self.structure])]

    def unpack(self, arrays: Iterator[Array]) -> Self:
        """The same boundary with its arrays replaced by the next of ``arrays``, which come in the order of ``pack``."""
        rows = next(arrays)
        if self.ranked is None:
            return type(self)(rows)
        key_rows, ranked = next(arrays), self.ranked.unpack(arrays)
        return type(self)(rows, key_rows, ranked, None if self.structure is None else next(arrays))


class StepLayout:
    """The layout of one step; immutable.

    Args:
        plans: the plan of each request in the batch, None if nothing drops.
        num_computed: ``[requests]``, tokens that earlier steps have computed.
        num_scheduled: ``[requests]``, tokens that this step computes; 0 for padding.
    """

    def __init__(
        self,
        plans: Sequence[RequestPlan | None],
        num_computed: np.ndarray,
        num_scheduled: np.ndarray,
        num_segments: int,
    ) -> None:
        self.num_segments = num_segments
        self._plans, self._num_scheduled = plans, num_scheduled.copy()  # runners reuse their arrays
        planned = [(request_idx, plan) for request_idx, plan in enumerate(plans) if plan is not None]
        self.has_drops = bool(planned)  # whether any request holds fewer tokens in some segment, now or since before
        self._planned = [request_idx for request_idx, _ in planned]
        self.dropped = np.zeros((num_segments, len(plans)), dtype=np.int64)
        for segment_idx, dropped in enumerate(self.dropped):
            dropped[self._planned] = [plan.segments[segment_idx].dropped for _, plan in planned]
        # Requests that drop in this step; the scheduler never splits their prompts. After a preemption, generated
        # tokens follow, in this step or in later ones.
        self.prefills = [(request_idx, plan) for request_idx, plan in planned if num_computed[request_idx] == 0]
        counts = np.tile(num_scheduled, (num_segments, 1))
        for request_idx, plan in self.prefills:
            assert num_scheduled[request_idx] >= plan.layout.num_tokens, f"a prompt that drops was split: {plan}"
            counts[:, request_idx] -= plan.dropped
        self.starts = np.zeros((num_segments, len(plans) + 1), dtype=np.int64)
        np.cumsum(counts, axis=1, out=self.starts[:, 1:])
        self.max_query_lens: list[int] = counts.max(axis=1).tolist()  # by segment

    def holds_for(
        self, plans: Sequence[RequestPlan | None], num_computed: np.ndarray, num_scheduled: np.ndarray
    ) -> bool:
        """Whether another step, in which no request drops, has this layout: decoding steps of the same requests do."""
        if self.prefills or not np.array_equal(num_scheduled, self._num_scheduled) or plans != self._plans:
            return False
        return bool(num_computed[self._planned].all())

    @cached_property
    def num_rows(self) -> list[int]:
        """Rows of the step in each segment."""
        return self.starts[:, -1].tolist()

    @cached_property
    def boundaries(self) -> tuple[StepBoundary | None, ...]:
        """One entry per boundary; None if every row goes on."""
        if not self.prefills:
            return (None,) * (self.num_segments - 1)
        return tuple(_step_boundary(self, idx) for idx in range(1, self.num_segments))


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """The part of a step's layout that the device reads."""

    dropped: torch.Tensor  # [segments, requests]
    starts: torch.Tensor  # [segments, requests + 1]
    boundaries: tuple[StepBoundary | None, ...]  # their arrays are tensors


def move_layout(layout: StepLayout, device: torch.device) -> DeviceLayout:
    """Move a layout to the device in one copy, without making the host wait."""
    packed = [array for boundary in layout.boundaries if boundary is not None for array in boundary.pack()]
    dropped, starts, *rest = to_device_at_once([layout.dropped, layout.starts, *packed], device)
    tensors = iter(rest)
    boundaries = tuple(boundary and boundary.unpack(tensors) for boundary in layout.boundaries)
    return DeviceLayout(dropped, starts, boundaries)


def _step_boundary(layout: StepLayout, segment_idx: int) -> StepBoundary | None:
    before, after = layout.starts[segment_idx - 1], layout.starts[segment_idx]
    if before[-1] == after[-1]:
        return None
    is_kept, builder = np.ones(before[-1], dtype=bool), RankedRowsBuilder()
    key_rows, structure = [], list[int]()
    for request_idx, plan in layout.prefills:
        start, new_start = int(before[request_idx]), int(after[request_idx])
        old, new = plan.segments[segment_idx - 1 : segment_idx + 1]
        pools = []
        for old_pool, new_pool in zip(old.pools, new.pools, strict=True):
            first, length, num_keep = start + old_pool.start, len(old_pool), len(new_pool)
            # Placeholder: each pool's first rows. The device overwrites them with the highest-scored ones.
            is_kept[first + num_keep : first + length] = False
            if 0 < num_keep < length:  # a pool that stays or goes as a whole needs no scores
                pools.append((old_pool.start, length, num_keep, first, new_start + new_pool.start))
        if pools:
            structure += [int(layout.starts[0, request_idx]) + row for row in plan.layout.structure]
            # Keys are prompt rows only: guiding rows do not attend to generated tokens, which come after them.
            builder.add(old.num_tokens, text_rows(plan, segment_idx - 1, plan.guiding_rows), pools)
            key_rows.append(np.arange(start, start + old.num_tokens))
    rows, ranked = is_kept.nonzero()[0], builder.build()
    if ranked is None:
        return StepBoundary(rows)
    return StepBoundary(rows, np.concatenate(key_rows), ranked, np.array(structure) if structure else None)
