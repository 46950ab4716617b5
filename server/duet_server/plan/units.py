"""Units: what the vision tower attends within, and what stage 1 keeps of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from duet_server.plan.budget import split_total

Grid = tuple[int, int]  # rows and columns of visual tokens


class Unit(NamedTuple):
    """A unit of an image or a video: a whole image, a tile or a frame.

    ``rows`` and ``columns`` are its grid of visual tokens. The other three are stage 1's counts; all of them are 0 if
    the unit enters the language model whole. A ``cluster_width`` of 0 sets no limit.
    """

    rows: int
    columns: int
    dominant: int = 0
    contextual: int = 0
    cluster_width: int = 0

    @property
    def num_tokens(self) -> int:
        """Visual tokens that the tower makes."""
        return self.rows * self.columns

    @property
    def is_cut(self) -> bool:
        """Whether stage 1 chooses the unit's tokens."""
        return self.dominant > 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Stage 1's counts, as :func:`duet_kernels.select_and_merge` takes them."""
        return self.dominant, self.contextual, self.cluster_width

    @property
    def num_entering(self) -> int:
        """Visual tokens that enter the language model."""
        return self.dominant + self.contextual if self.is_cut else self.num_tokens


def any_cut(units: Iterable[Unit]) -> bool:
    """Whether stage 1 chooses the tokens of any of these units."""
    return any(unit.is_cut for unit in units)


TOTAL = -1


class Stage1Rule(NamedTuple):
    """What stage 1 keeps of an image or a video whose number of tokens is not known yet.

    ``dominant`` and ``contextual`` are numbers for each unit: shares of its tokens if below 1, otherwise counts. If
    ``contextual`` is ``TOTAL``, then ``dominant`` is the number for the whole image or video, and its units get parts
    in proportion to their tokens.
    """

    dominant: float
    contextual: float
    cluster_width: int


def cut_units(
    rule: Stage1Rule | None, grids: Sequence[Grid], *, has_cls: bool, num_tokens: int | None = None
) -> list[Unit]:
    """The units of one image or video, with the counts that the rule gives them. Nothing else turns rules into counts.

    Units stay whole without a rule, and where it would remove no token. With ``has_cls``, counts for each unit always
    cut it, because the class token enters only with a cut. All units of an item stay whole if more tokens would enter
    than without stage 1, apart from class tokens: LLaVA-NeXT removes much padding from some images, but not of tiles
    that are cut.

    Args:
        rule: stage 1's rule; None if stage 1 is off.
        grids: the grid of each unit.
        has_cls: whether D counts a class token, which then enters with every unit that is cut.
        num_tokens: the visual tokens that the language model gets without stage 1, which the number for a whole image
            or video refers to; None if they are all that the tower makes. LLaVA-NeXT removes padding and adds newlines.
    """
    whole = [Unit(*grid) for grid in grids]
    num_made = sum(unit.num_tokens for unit in whole)
    num_tokens = num_made if num_tokens is None else num_tokens
    if rule is None:
        return whole
    if rule.contextual == TOTAL:
        total = int(rule.dominant * num_tokens if rule.dominant < 1 else rule.dominant)
        if total >= num_tokens:
            return whole
        edges = [0, *(min(total, num_made) * end // num_made for end in accumulate(unit.num_tokens for unit in whole))]
        parts = [max(1, end - start) for start, end in pairwise(edges)]
        counts = [split_total(part, unit.num_tokens) for part, unit in zip(parts, whole, strict=True)]
    else:
        counts = [_unit_counts(rule, unit.num_tokens, int(has_cls)) for unit in whole]
    units = [
        unit._replace(dominant=pair[0], contextual=pair[1], cluster_width=rule.cluster_width)
        if has_cls or sum(pair) < unit.num_tokens
        else unit
        for unit, pair in zip(whole, counts, strict=True)
    ]
    most = num_tokens + has_cls * len(units)
    return units if sum(unit.num_entering for unit in units) <= most else whole


def excess_positions(units: Iterable[Unit]) -> int:
    """How many more positions than tokens images take, where tokens keep the positions that they have uncompressed.

    An image then takes as many as its longer side, however few of its tokens are left.
    """
    return sum(max(unit.rows, unit.columns) - unit.num_entering for unit in units)


def _unit_counts(rule: Stage1Rule, num_tokens: int, num_cls: int) -> tuple[int, int]:
    """(D, C), as many as the unit has."""
    dominant = min(max(1, _count(rule.dominant, num_tokens)), num_tokens + num_cls)
    return dominant, min(_count(rule.contextual, num_tokens), num_tokens + num_cls - dominant)


def _count(number: float, num_tokens: int) -> int:
    return round(number * num_tokens) if number < 1 else int(number)
