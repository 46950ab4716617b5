"""Where every row of one engine step lies in every segment: planned on the host, before the forward.

Only *which* visual tokens survive is decided on the device; how many, and so all lengths, positions and places, is not.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from duet_server.plan import RequestPlan, text_row


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request of a step: its plan (None: drops nothing) and the tokens this step computes."""

    plan: RequestPlan | None
    num_computed: int
    num_scheduled: int

    @property
    def prefills_plan(self) -> bool:
        """Whether this step is where the request's visual tokens drop; vLLM's scheduler keeps it whole."""
        return self.plan is not None and self.num_computed == 0

    def num_rows(self, segment_idx: int) -> int:
        """Rows of this step in the segment; a resumed prefill carries its output tokens behind the prompt."""
        if self.plan is None or self.num_computed > 0:
            return self.num_scheduled
        assert self.num_scheduled >= self.plan.layout.num_tokens, f"a prefill that drops was split: {self}"
        return self.num_scheduled - self.plan.segments[segment_idx].dropped

    def dropped(self, segment_idx: int) -> int:
        return self.plan.segments[segment_idx].dropped if self.plan else 0


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Requests of about one size that have to be scored at a boundary; all sizes are known on the host."""

    key_rows: torch.Tensor  # [keys] rows of the segment before, request after request
    guiding_keys: torch.Tensor  # [queries] which of the keys guide
    query_positions: torch.Tensor  # [queries] the same, counted from the request's first key
    cu_queries: torch.Tensor  # [requests + 1]
    cu_keys: torch.Tensor  # [requests + 1]
    pool_start: torch.Tensor  # [pools] in keys
    pool_length: torch.Tensor  # [pools]
    num_keep: torch.Tensor  # [pools]
    targets: torch.Tensor  # [sum(num_keep)] rows of the segment after that the survivors take
    max_queries: int
    max_keys: int
    max_pool: int


@dataclass(frozen=True, slots=True)
class BoundaryRows:
    """How the rows of one segment follow from those of the segment before."""

    rows: torch.Tensor  # [rows after] rows of the segment before; survivors' places hold any row of it
    scored: tuple[ScoredRows, ...]  # by size of request; empty where nothing is to be chosen


class StepLayout:
    """The layout of one step. Immutable; segments and boundaries are built when first asked for."""

    def __init__(self, requests: Sequence[ScheduledRequest], num_segments: int, device: torch.device) -> None:
        self.requests = requests
        self.num_segments = num_segments
        self.device = device
        self._segments: dict[int, SegmentRows] = {}

    def segment(self, segment_idx: int) -> "SegmentRows":
        if segment_idx not in self._segments:
            self._segments[segment_idx] = SegmentRows(self, segment_idx)
        return self._segments[segment_idx]

    @cached_property
    def has_drops(self) -> bool:
        """Whether any request holds fewer tokens in some segment, in this step or since an earlier one."""
        return any(request.plan is not None for request in self.requests)

    @cached_property
    def boundaries(self) -> tuple[BoundaryRows | None, ...]:
        """One entry per boundary; None where every row goes on."""
        if not any(request.prefills_plan for request in self.requests):
            return (None,) * (self.num_segments - 1)
        return tuple(_boundary_rows(self, idx) for idx in range(1, self.num_segments))

    def to_device(self, values: Sequence[int] | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.int64)).to(self.device, non_blocking=True)


class SegmentRows:
    """One segment's rows in this step."""

    def __init__(self, layout: StepLayout, segment_idx: int) -> None:
        counts = [request.num_rows(segment_idx) for request in layout.requests]
        self.num_rows = sum(counts)
        self.max_query_len = max(counts, default=0)
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # [requests + 1]
        dropped = np.array([request.dropped(segment_idx) for request in layout.requests], dtype=np.int32)
        self.dropped_cpu = torch.from_numpy(dropped)  # [requests]
        self.dropped = self.dropped_cpu.to(layout.device, non_blocking=True)
        self.query_start_loc_cpu = torch.from_numpy(self.starts.astype(np.int32))  # [requests + 1]
        self.query_start_loc = self.query_start_loc_cpu.to(layout.device, non_blocking=True)
        self._located: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def locate(self, seq_lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sequence lengths ``[requests]``, and of every row its position in the closed-up sequence and its request.

        Args:
            seq_lens: ``[requests]``, the lengths before anything dropped; the same for all groups of a step.
        """
        if self._located is None:
            held = seq_lens - self.dropped
            row = torch.arange(self.num_rows, device=held.device)
            request_idx = torch.searchsorted(self.query_start_loc[1:], row, right=True)
            self._located = held, row + (held - self.query_start_loc[1:])[request_idx], request_idx
        return self._located

    @property
    def positions(self) -> torch.Tensor:
        """``[rows]`` int64, once the segment's attention metadata is built."""
        assert self._located is not None, "the attention metadata of this segment was not built"
        return self._located[1]


def _boundary_rows(layout: StepLayout, segment_idx: int) -> BoundaryRows | None:
    before, after = layout.segment(segment_idx - 1), layout.segment(segment_idx)
    if before.num_rows == after.num_rows:
        return None
    pieces: list[np.ndarray] = []
    scored: dict[tuple[int, int], _ScoredRowsBuilder] = defaultdict(_ScoredRowsBuilder)
    for request, start, new_start in zip(layout.requests, before.starts, after.starts, strict=False):
        if not request.prefills_plan:
            pieces.append(np.arange(start, start + request.num_rows(segment_idx)))
            continue
        pieces.append(start + _static_rows(request, segment_idx))
        scored[_size(request, segment_idx)].add(request, segment_idx, int(start), int(new_start))
    groups = [builder.build(layout) for builder in scored.values() if builder.pools]
    return BoundaryRows(layout.to_device(np.concatenate(pieces)), tuple(groups))


def _size(request: ScheduledRequest, segment_idx: int) -> tuple[int, int]:
    """Powers of two: scores are computed on padded rows, and a short request is not to pay for a long one."""
    assert request.plan is not None
    return request.plan.segments[segment_idx - 1].num_tokens.bit_length(), len(request.plan.guiding).bit_length()


def _static_rows(request: ScheduledRequest, segment_idx: int) -> np.ndarray:
    """For each row of the request after the boundary its row before, with the first ``keep`` of every pool."""
    assert request.plan is not None
    old, new = request.plan.segments[segment_idx - 1], request.plan.segments[segment_idx]
    is_kept = np.ones(request.num_rows(segment_idx - 1), dtype=bool)
    for old_pool, new_pool in zip(old.pools, new.pools, strict=True):
        is_kept[old_pool.start + len(new_pool) : old_pool.end] = False
    return is_kept.nonzero()[0]


class _ScoredRowsBuilder:
    """Collects the requests of one size of which a boundary must choose tokens."""

    def __init__(self) -> None:
        self.key_rows: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.num_keys: list[int] = []
        self.pools: list[tuple[int, int, int]] = []  # start in keys, length, keep
        self.targets: list[np.ndarray] = []

    def add(self, request: ScheduledRequest, segment_idx: int, start: int, new_start: int) -> None:
        plan = request.plan
        assert plan is not None
        old, new = plan.segments[segment_idx - 1], plan.segments[segment_idx]
        pools = [(o, n) for o, n in zip(old.pools, new.pools, strict=True) if 0 < len(n) < len(o)]
        if not pools:
            return  # pools that stay whole or go entirely need no scores
        first_key = sum(self.num_keys)
        # Guiding rows are prompt rows, and no prompt row attends to the outputs behind it.
        self.num_keys.append(old.num_tokens)
        self.key_rows.append(np.arange(start, start + old.num_tokens))
        self.positions.append(np.array([text_row(plan, segment_idx - 1, row) for row in plan.guiding]))
        self.pools += [(first_key + o.start, len(o), len(n)) for o, n in pools]
        self.targets += [np.arange(new_start + n.start, new_start + n.end) for _, n in pools]

    def build(self, layout: StepLayout) -> ScoredRows:
        num_queries = [len(positions) for positions in self.positions]
        cu_keys = np.concatenate([[0], np.cumsum(self.num_keys)])
        starts = np.repeat(cu_keys[:-1], num_queries)
        positions = np.concatenate(self.positions)
        pool_start, pool_length, num_keep = np.array(self.pools).T
        return ScoredRows(
            key_rows=layout.to_device(np.concatenate(self.key_rows)),
            guiding_keys=layout.to_device(starts + positions),
            query_positions=layout.to_device(positions),
            cu_queries=layout.to_device(np.concatenate([[0], np.cumsum(num_queries)])),
            cu_keys=layout.to_device(cu_keys),
            pool_start=layout.to_device(pool_start),
            pool_length=layout.to_device(pool_length),
            num_keep=layout.to_device(num_keep),
            targets=layout.to_device(np.concatenate(self.targets)),
            max_queries=max(num_queries),
            max_keys=max(self.num_keys),
            max_pool=int(pool_length.max()),
        )
