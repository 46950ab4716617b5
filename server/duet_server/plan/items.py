"""plan_prompt(): from the images and videos of a prompt to the plan of its request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from duet_server.plan.budget import settings_for_item
from duet_server.plan.layout import VisualRows, make_layout
from duet_server.plan.segments import RequestPlan, lay_out, num_kept
from duet_server.plan.settings import CompressionSettings
from duet_server.plan.shape import ModelShape
from duet_server.plan.units import Unit, any_cut


class VisualItem(NamedTuple):
    """An image or a video in a rendered prompt.

    Attributes:
        modality: ``image`` or ``video``.
        span: its rows in the prompt, from its first visual token to its last.
        num_tokens: the visual tokens that the language model gets without stage 1.
        units: what the tower encodes, in the tower's order, with what stage 1 keeps of it.
    """

    modality: str
    span: tuple[int, int]
    num_tokens: int
    units: tuple[Unit, ...]

    @property
    def is_cut(self) -> bool:
        """Whether stage 1 chooses any of its tokens."""
        return any_cut(self.units)

    @property
    def num_entering(self) -> int:
        """Visual tokens that enter the language model."""
        return sum(unit.num_entering for unit in self.units) if self.is_cut else self.num_tokens

    def keep(self, settings: CompressionSettings, shape: ModelShape) -> tuple[float, ...]:
        """For each boundary, the share of the entering tokens that the segment behind it holds."""
        return settings_for_item(settings, shape, self.num_tokens, is_cut=self.is_cut).keep

    def segment_counts(self, settings: CompressionSettings, shape: ModelShape) -> tuple[int, ...]:
        """Visual tokens in each segment, if the item is a pool of its own."""
        return tuple(num_kept(self.num_entering, share) for share in (1.0, *self.keep(settings, shape)))


def plan_prompt(
    settings: CompressionSettings, shape: ModelShape, num_tokens: int, visual: VisualRows, items: Sequence[VisualItem]
) -> RequestPlan:
    """The plan of a rendered prompt, without guiding rows, since they do not change counts.

    Args:
        settings: the request's settings.
        shape: the model.
        num_tokens: tokens of the prompt.
        visual: the rows of its images and videos.
        items: the same images and videos, in any order.
    """
    layout = make_layout(num_tokens, *visual)
    held = []
    for pool in layout.pools:
        entering: Counter[tuple[float, ...]] = Counter()  # tokens that enter, by their keeps
        for item in items:
            if item.span[0] in pool:
                entering[item.keep(settings, shape)] += item.num_entering
        num_structure, num_entering = layout.num_structure(pool), entering.total()
        assert len(pool) == num_structure + num_entering, f"{pool=} {num_structure=} {num_entering=}"
        shares = [(1.0, *keep) for keep in entering]
        counts = [
            sum(num_kept(length, keep[idx]) for keep, length in zip(shares, entering.values(), strict=True))
            for idx in range(len(shape.boundaries) + 1)
        ]
        held.append([count + num_structure for count in counts])
    by_segment = [[counts[idx] for counts in held] for idx in range(len(shape.boundaries) + 1)]
    return lay_out(layout, by_segment, ())
