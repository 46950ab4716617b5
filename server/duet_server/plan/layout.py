"""Which rows of a prompt are visual, and which rows guide."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from duet_server.plan.errors import SettingsError, Words

GUIDE_CHOICES = ("all", "salient", "last")


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``[start, end)``."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, row: int) -> bool:
        return self.start <= row < self.end


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Which rows of a prompt are visual.

    ``num_tokens`` counts the prompt's tokens that enter the language model. ``pools`` are ascending, disjoint and never
    adjacent: visual tokens with no text between them form one pool. ``structure`` are the rows inside pools that are no
    visual tokens, such as the time of a frame. They are never dropped, and they never guide.
    """

    num_tokens: int
    pools: tuple[Span, ...]
    structure: tuple[int, ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        return sum(len(pool) for pool in self.pools) - len(self.structure)

    def num_structure(self, pool: Span) -> int:
        """How many rows of a pool are structure."""
        return bisect_left(self.structure, pool.end) - bisect_left(self.structure, pool.start)

    @property
    def num_text_tokens(self) -> int:
        return self.num_tokens - self.num_visual_tokens

    def is_visual(self, row: int) -> bool:
        return any(row in pool for pool in self.pools)


class VisualRows(NamedTuple):
    """The rows of a prompt that images and videos take."""

    spans: list[tuple[int, int]]  # rows [start, end) of each image or video, from its first visual token to its last
    structure: list[int]  # rows inside the spans that are no visual tokens

    @classmethod
    def of(cls, placeholders: Iterable[Any]) -> Self:
        """The rows of vLLM's placeholder ranges. Rows of a range before and behind its visual tokens count as text."""
        rows = cls([], [])
        for placeholder in placeholders:
            start, length, mask = placeholder.offset, placeholder.length, placeholder.is_embed
            if mask is None:
                rows.spans.append((start, start + length))
                continue
            is_visual = mask.tolist()
            places = [place for place, visual in enumerate(is_visual) if visual]
            rows.spans.append((start + places[0], start + places[-1] + 1))
            rows.structure.extend(start + place for place in range(places[0], places[-1]) if not is_visual[place])
        return rows


def make_layout(
    num_tokens: int, visual_spans: Iterable[tuple[int, int]], structure: Iterable[int] = ()
) -> PromptLayout:
    """Merge adjacent visual spans (half-open, in any order) into the pools of a prompt.

    Raises:
        ValueError: if a span is empty, reaches outside ``[0, num_tokens)`` or overlaps another.
    """
    pools: list[Span] = []
    for start, end in sorted(visual_spans):
        if not 0 <= start < end <= num_tokens:
            raise ValueError(f"visual span [{start}, {end}) is empty or reaches outside the prompt, [0, {num_tokens})")
        if pools and start < pools[-1].end:
            raise ValueError(f"visual span [{start}, {end}) overlaps the one that ends at {pools[-1].end}")
        touches = bool(pools) and start == pools[-1].end
        pools.append(Span(pools.pop().start if touches else start, end))
    return PromptLayout(num_tokens, tuple(pools), tuple(sorted(structure)))


def check_ends_on_text(layout: PromptLayout) -> None:
    """Raise SettingsError if the last row is visual: stage 2 could drop it, but the first token is sampled from it."""
    if layout.num_tokens and layout.is_visual(layout.num_tokens - 1):
        value = Words("a prompt that ends with an image")
        raise SettingsError("messages", value, "text after the last image, which ranks its tokens")


def guiding_rows(layout: PromptLayout, guide: str, salient: Sequence[int] = ()) -> tuple[int, ...]:
    """The guiding rows of a prompt, ascending. A pool is ranked by the guiding rows after it.

    Guiding rows are text rows after the first pool. There is one exception: the prompt's last row always guides, even
    if it is visual, so that every pool has a guiding row. A prompt without pools has no guiding rows.

    Args:
        layout: the prompt's layout.
        guide: ``all`` for every text row after the first pool, ``salient`` for the salient rows and the last row,
            ``last`` for the last row only.
        salient: rows of salient words; read only with ``guide="salient"``. Rows before the first pool are ignored.

    Raises:
        ValueError: if ``guide`` is unknown, or a salient row is visual or outside the prompt.
    """
    if guide not in GUIDE_CHOICES:
        raise ValueError(f"guide is {guide!r}, expected one of {', '.join(GUIDE_CHOICES)}")
    if not layout.pools:
        return ()
    rows: list[int] = []
    if guide == "all":
        rows = _text_rows(layout)
    elif guide == "salient":
        rows = _salient_rows(layout, salient)
    last_row = layout.num_tokens - 1
    return tuple(rows) if rows and rows[-1] == last_row else (*rows, last_row)


def _text_rows(layout: PromptLayout) -> list[int]:
    """Every text row after the first pool, ascending."""
    starts = [pool.start for pool in layout.pools[1:]] + [layout.num_tokens]
    return [row for pool, start in zip(layout.pools, starts, strict=True) for row in range(pool.end, start)]


def _salient_rows(layout: PromptLayout, salient: Sequence[int]) -> list[int]:
    """The salient rows after the first pool, ascending and each once."""
    rows = sorted(set(salient))
    for row in (*rows[:1], *rows[-1:]):
        if not 0 <= row < layout.num_tokens:
            raise ValueError(f"salient row {row} is outside the prompt, [0, {layout.num_tokens})")
    for pool in layout.pools:
        idx = bisect_left(rows, pool.start)
        if idx < len(rows) and rows[idx] in pool:
            raise ValueError(f"salient row {rows[idx]} is a visual token, expected a text row")
    return rows[bisect_left(rows, layout.pools[0].end) :]
