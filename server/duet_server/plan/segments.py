"""make_plan(): how many tokens each segment of the decoder holds, and where."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeGuard

from duet_server.plan.layout import PromptLayout, Span


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """The prompt tokens that one segment holds.

    Attributes:
        num_tokens: how many prompt tokens the segment holds.
        dropped: how many of the tokens that entered the language model it does not hold.
        pools: where the kept tokens of each pool lie. Rows count in this segment, without gaps; a pool that was dropped
            as a whole is an empty span.
        num_structure: how many of the rows in the pools are structure, which is never dropped.
    """

    num_tokens: int
    dropped: int
    pools: tuple[Span, ...]
    num_structure: int = 0

    @property
    def num_visual_tokens(self) -> int:
        return sum(len(pool) for pool in self.pools) - self.num_structure


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """The segments of a request, first to last. Segment 0 holds the whole prompt.

    ``guiding_rows`` are the prompt rows that rank visual tokens. ``trace_id`` is the id of the request's trace, 0 if it
    has none.
    """

    layout: PromptLayout
    guiding_rows: tuple[int, ...]
    segments: tuple[SegmentPlan, ...]
    trace_id: int = 0

    @property
    def dropped(self) -> tuple[int, ...]:
        """For each segment, the number of prompt tokens that it does not hold."""
        return tuple([segment.dropped for segment in self.segments])

    @property
    def drops(self) -> bool:
        """Whether any segment holds fewer tokens than the prompt has."""
        return any(self.dropped)


def is_schedule(keep: object, num_boundaries: int) -> TypeGuard[Sequence[float]]:
    """Whether ``keep`` is a list of numbers from 1 to 0 that never rise, one for each boundary."""
    if not isinstance(keep, list | tuple) or len(keep) != num_boundaries:
        return False
    are_numbers = all(isinstance(share, int | float) and not isinstance(share, bool) for share in keep)
    return are_numbers and all(later <= earlier for earlier, later in pairwise((1, *keep, 0)))


def num_kept(num_visual_tokens: int, keep: float) -> int:
    """How many of the visual tokens that entered the language model a segment holds: ``floor(V * k)``."""
    return int(num_visual_tokens * keep)


def make_plan(layout: PromptLayout, keep: Sequence[float], guiding_rows: Sequence[int]) -> RequestPlan:
    """Lay out the segments of a request: one before the first boundary, then one for each keep.

    Each pool is counted on its own. A keep is always a share of the pool's length on entering the language model.

    Args:
        layout: the prompt's layout.
        keep: for each boundary, the share of a pool that the segment behind it holds; in [0, 1], never rising.
        guiding_rows: the prompt rows that :func:`duet_server.plan.guiding_rows` returns.

    Raises:
        ValueError: if the keeps rise or leave [0, 1].
    """
    if not is_schedule(keep, len(keep)):
        raise ValueError(f"keep is {list(keep)}, expected shares from 1 to 0 that never rise")
    pinned = [layout.num_structure(pool) for pool in layout.pools]
    held = [
        [
            num_kept(len(pool) - num_pinned, share) + num_pinned
            for pool, num_pinned in zip(layout.pools, pinned, strict=True)
        ]
        for share in (1.0, *keep)
    ]
    return lay_out(layout, held, guiding_rows)


def lay_out(layout: PromptLayout, held: Sequence[Sequence[int]], guiding_rows: Sequence[int]) -> RequestPlan:
    """Lay out the segments of a request whose counts are known.

    Args:
        layout: the prompt's layout.
        held: for each segment, the rows of each pool that it holds, structure rows included.
        guiding_rows: the prompt rows that :func:`duet_server.plan.guiding_rows` returns.

    Raises:
        ValueError: if a pool does not enter as a whole, or its counts rise or fall below its structure rows.
    """
    for pool, counts in zip(layout.pools, zip(*held, strict=True), strict=True):
        least = layout.num_structure(pool)
        if counts[0] != len(pool) or list(counts) != sorted(counts, reverse=True) or counts[-1] < least:
            raise ValueError(
                f"a pool holds {list(counts)}, expected counts from {len(pool)} to {least} that never rise"
            )
    return RequestPlan(layout, tuple(guiding_rows), tuple(_close_up(layout, counts) for counts in held))


def text_rows(plan: RequestPlan, segment_idx: int, rows: Sequence[int]) -> list[int]:
    """Map ascending text rows of the prompt to rows of a segment: subtract what the pools before a row dropped.

    For the prompt's last row and the rows after it (generated tokens), all dropped tokens are subtracted. So the last
    row, which always guides, is the segment's last row even if the prompt ends on a visual token.
    """
    last = plan.layout.num_tokens - 1
    result: list[int] = []
    done, dropped = 0, 0
    for pool, kept in zip(plan.layout.pools, plan.segments[segment_idx].pools, strict=True):
        end = bisect_left(rows, pool.start, lo=done)
        result += [row - dropped for row in rows[done:end]]
        assert end == len(rows) or rows[end] >= min(pool.end, last), f"row={rows[end]} is visual: {plan.layout.pools}"
        done, dropped = end, dropped + len(pool) - len(kept)
    return result + [row - dropped for row in rows[done:]]


def _close_up(layout: PromptLayout, held: Sequence[int]) -> SegmentPlan:
    """The segment in which every pool holds so many of its rows, with rows renumbered without gaps."""
    dropped = 0
    pools = []
    for pool, num_held in zip(layout.pools, held, strict=True):
        start = pool.start - dropped
        pools.append(Span(start, start + num_held))
        dropped += len(pool) - num_held
    return SegmentPlan(layout.num_tokens - dropped, dropped, tuple(pools), len(layout.structure))
