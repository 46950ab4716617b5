"""make_plan(): how many tokens each segment of the decoder holds, and where."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeGuard

from duet_server.plan.layout import PromptLayout, Span


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """What the decoder layers between two boundaries hold of a prompt.

    ``num_tokens`` prompt tokens, ``dropped`` fewer than entered the language model. ``pools`` say where each pool's
    survivors lie, in this segment's own closed-up rows; a pool that was dropped whole is an empty span.
    """

    num_tokens: int
    dropped: int
    pools: tuple[Span, ...]

    @property
    def num_visual_tokens(self) -> int:
        return sum(len(pool) for pool in self.pools)


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """A request's segments, first to last; segment 0 holds the whole prompt.

    ``guiding_rows`` are prompt rows that rank visual tokens; ``trace_id`` is the id that the engine notes its choices
    under, 0 for no notes.
    """

    layout: PromptLayout
    guiding_rows: tuple[int, ...]
    segments: tuple[SegmentPlan, ...]
    trace_id: int = 0

    @property
    def dropped(self) -> tuple[int, ...]:
        """By segment, tokens of the prompt that it does not hold."""
        return tuple([segment.dropped for segment in self.segments])

    @property
    def drops(self) -> bool:
        """Whether any segment holds less than the prompt."""
        return any(self.dropped)


def is_schedule(keep: object, num_boundaries: int) -> TypeGuard[Sequence[float]]:
    """Whether ``keep`` is a list of numbers from 1 to 0 that never rise, one for each boundary."""
    if not isinstance(keep, list | tuple) or len(keep) != num_boundaries:
        return False
    are_numbers = all(isinstance(share, int | float) and not isinstance(share, bool) for share in keep)
    return are_numbers and all(later <= earlier for earlier, later in pairwise((1, *keep, 0)))


def num_kept(num_visual_tokens: int, keep: float) -> int:
    """Of the tokens that entered the language model, how many a segment holds: ``floor(V * k)``."""
    return int(num_visual_tokens * keep)


def make_plan(layout: PromptLayout, keep: Sequence[float], guiding_rows: Sequence[int]) -> RequestPlan:
    """Lay out the segments of a request: one before the first boundary, then one for each keep.

    Every pool is counted on its own, and always from the length with which it entered the language model.

    Args:
        layout: the prompt's layout.
        keep: for each boundary, the share of a pool that the segment behind it holds; in [0, 1], never rising.
        guiding_rows: the prompt rows that rank visual tokens, as the function of that name gives them.

    Raises:
        ValueError: if the keeps rise or leave [0, 1].
    """
    if not is_schedule(keep, len(keep)):
        raise ValueError(f"keep is {list(keep)}, expected shares from 1 to 0 that never rise")
    return RequestPlan(layout, tuple(guiding_rows), tuple(_close_up(layout, share) for share in (1.0, *keep)))


def text_rows(plan: RequestPlan, segment_idx: int, rows: Iterable[int]) -> list[int]:
    """Where text rows of the prompt lie in a segment: closed up by what the pools before each dropped.

    Rows from the prompt's last one on, generated tokens included, map to the rows behind all that was dropped. So the
    last row, which always guides, is the segment's last row even when the prompt ends on a visual token.
    """
    pools = plan.layout.pools
    kept = [len(pool) for pool in plan.segments[segment_idx].pools]
    shifts = [0, *accumulate(len(pool) - num_kept for pool, num_kept in zip(pools, kept, strict=True))]
    starts, last = [pool.start for pool in pools], plan.layout.num_tokens - 1
    result = []
    for row in rows:
        num_before = bisect_right(starts, row)
        assert row >= last or num_before == 0 or row >= pools[num_before - 1].end, f"{row=} is visual: {pools}"
        result.append(row - shifts[num_before])
    return result


def _close_up(layout: PromptLayout, keep: float) -> SegmentPlan:
    dropped = 0
    pools = []
    for pool in layout.pools:
        start, kept = pool.start - dropped, num_kept(len(pool), keep)
        pools.append(Span(start, start + kept))
        dropped += len(pool) - kept
    return SegmentPlan(layout.num_tokens - dropped, dropped, tuple(pools))
