"""Where every row of one engine step lies in every segment: planned on the host, before the forward.

Only *which* visual tokens survive is decided on the device; how many, and so all lengths, positions and places, is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch

from duet_kernels import to_device_at_once
from duet_server.plan import RequestPlan, text_rows

Array: TypeAlias = np.ndarray | torch.Tensor  # of integers: planned as the first, read by the model as the second


class ScoredRows(NamedTuple):
    """Requests of which a boundary has to choose tokens, and the pools it chooses from."""

    key_rows: Array  # [keys] rows of the segment before, request after request
    guiding_keys: Array  # [queries] which of the keys guide
    query_positions: Array  # [queries] the same, counted from the request's first key
    cu_queries: Array  # [requests + 1]
    cu_keys: Array  # [requests + 1]
    pool_start: Array  # [pools] in keys
    pool_length: Array  # [pools]
    pool_request: Array  # [pools]
    num_keep: Array  # [pools]
    first_row: Array  # [pools] the pool's first row of the segment before
    target: Array  # [pools] the first row of the segment after that the survivors take


@dataclass(frozen=True, slots=True)
class BoundaryRows:
    """How the rows of one segment follow from those of the segment before."""

    rows: Array  # [rows after] rows of the segment before; survivors' places hold any row of it
    scored: ScoredRows | None = None  # None where nothing is to be chosen
    max_queries: int = 0  # the most of any request that is scored
    max_keys: int = 0
    max_pool: int = 0

    @property
    def arrays(self) -> tuple[Any, ...]:
        return (self.rows, *(self.scored or ()))

    def with_arrays(self, rows: Array, *scored: Array) -> Self:
        return replace(self, rows=rows, scored=ScoredRows(*scored) if scored else None)


class StepLayout:
    """The layout of one step; immutable.

    Args:
        plans: per request of the batch its plan, None where nothing drops.
        num_computed: ``[requests]``, tokens that earlier steps computed.
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
        self.has_drops = False  # whether any request holds fewer tokens in some segment, now or since an earlier step
        # Where visual tokens drop now; vLLM's scheduler keeps these whole. A resumed one ends on its outputs.
        self.prefills: list[tuple[int, RequestPlan]] = []
        self.dropped = np.zeros((num_segments, len(plans)), dtype=np.int64)
        counts = np.tile(num_scheduled, (num_segments, 1))
        for request_idx, plan in enumerate(plans):
            if plan is None:
                continue
            self.has_drops = True
            self.dropped[:, request_idx] = plan.dropped
            if num_computed[request_idx] == 0:
                assert num_scheduled[request_idx] >= plan.layout.num_tokens, f"a prefill that drops was split: {plan}"
                self.prefills.append((request_idx, plan))
                counts[:, request_idx] -= plan.dropped
        self.starts = np.zeros((num_segments, len(plans) + 1), dtype=np.int64)
        np.cumsum(counts, axis=1, out=self.starts[:, 1:])
        self.max_query_lens: list[int] = counts.max(axis=1).tolist()  # by segment

    @cached_property
    def num_rows(self) -> list[int]:
        """By segment."""
        return self.starts[:, -1].tolist()

    @cached_property
    def boundaries(self) -> tuple[BoundaryRows | None, ...]:
        """One entry per boundary; None where every row goes on."""
        if not self.prefills:
            return (None,) * (self.num_segments - 1)
        return tuple(_boundary_rows(self, idx) for idx in range(1, self.num_segments))


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """What the device reads of a step's layout."""

    dropped: torch.Tensor  # [segments, requests]
    starts: torch.Tensor  # [segments, requests + 1]
    boundaries: tuple[BoundaryRows | None, ...]  # of tensors


def move_layout(layout: StepLayout, device: torch.device) -> DeviceLayout:
    """Everything in one copy, for which the host does not wait."""
    arrays = [boundary.arrays if boundary else () for boundary in layout.boundaries]
    dropped, starts, *rest = to_device_at_once([layout.dropped, layout.starts, *chain(*arrays)], device)
    tensors = iter(rest)
    boundaries = tuple(
        boundary and boundary.with_arrays(*islice(tensors, len(own)))
        for boundary, own in zip(layout.boundaries, arrays, strict=True)
    )
    return DeviceLayout(dropped, starts, boundaries)


def _boundary_rows(layout: StepLayout, segment_idx: int) -> BoundaryRows | None:
    before, after = layout.starts[segment_idx - 1], layout.starts[segment_idx]
    if before[-1] == after[-1]:
        return None
    is_kept, builder = np.ones(before[-1], dtype=bool), _ScoredRowsBuilder()
    for request_idx, plan in layout.prefills:
        start = int(before[request_idx])
        old, new = plan.segments[segment_idx - 1 : segment_idx + 1]
        for old_pool, new_pool in zip(old.pools, new.pools, strict=True):
            # The first of every pool stand in for the best.
            is_kept[start + old_pool.start + len(new_pool) : start + old_pool.end] = False
        builder.add(plan, segment_idx, start, int(after[request_idx]))
    return builder.build(is_kept.nonzero()[0])


class _ScoredRowsBuilder:
    """Collects the requests of which a boundary must choose tokens."""

    def __init__(self) -> None:
        self.key_rows: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.pools: list[tuple[int, ...]] = []  # ScoredRows' columns from pool_start on
        self.num_keys = 0

    def add(self, plan: RequestPlan, segment_idx: int, start: int, new_start: int) -> None:
        """A prefill whose rows begin at ``start`` before and at ``new_start`` after the boundary."""
        old, new = plan.segments[segment_idx - 1 : segment_idx + 1]
        pools = [(o, n) for o, n in zip(old.pools, new.pools, strict=True) if 0 < len(n) < len(o)]
        if not pools:
            return  # pools that stay whole or go entirely need no scores
        self.pools += [
            (self.num_keys + o.start, len(o), len(self.key_rows), len(n), start + o.start, new_start + n.start)
            for o, n in pools
        ]
        # Guiding rows are prompt rows, and no prompt row attends to the outputs behind it.
        self.key_rows.append(np.arange(start, start + old.num_tokens))
        self.positions.append(np.array(text_rows(plan, segment_idx - 1, plan.guiding)))
        self.num_keys += old.num_tokens

    def build(self, rows: np.ndarray) -> BoundaryRows:
        if not self.pools:
            return BoundaryRows(rows)
        num_queries, num_keys = [[len(part) for part in parts] for parts in (self.positions, self.key_rows)]
        cu_queries, cu_keys = np.cumsum([0, *num_queries]), np.cumsum([0, *num_keys])
        positions = np.concatenate(self.positions)
        guiding_keys = np.repeat(cu_keys[:-1], num_queries) + positions
        pools = np.array(self.pools).T
        return BoundaryRows(
            rows,
            ScoredRows(np.concatenate(self.key_rows), guiding_keys, positions, cu_queries, cu_keys, *pools),
            max_queries=max(num_queries),
            max_keys=max(num_keys),
            max_pool=int(pools[1].max()),
        )
