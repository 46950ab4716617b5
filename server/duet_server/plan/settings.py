"""CompressionSettings: the compression of a request, resolved for one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from duet_server.plan.cost import layer_average
from duet_server.plan.segments import num_kept
from duet_server.plan.shape import ModelShape

DEFAULT_CLUSTER_WIDTH = 4
DEFAULT_GUIDE = "salient"
CUSTOM = "custom"
OFF = "off"


class Budget(NamedTuple):
    """Visual tokens of an image, averaged over decoder layers: a number, or a share of those without compression."""

    amount: float
    is_share: bool

    def of(self, num_tokens: int) -> float:
        """The budget of an image of ``num_tokens`` visual tokens, at most all of them."""
        return min(num_tokens, self.amount * num_tokens if self.is_share else self.amount)


@dataclass(frozen=True, slots=True)
class CompressionSettings:
    """Resolved settings: numbers for stage 1, one keep per boundary for stage 2.

    Numbers are per unit (image, tile or frame): a count from 1 on, or a share of the unit's tokens below 1. Shares
    occur only where images differ in size.

    Attributes:
        dominant: D, the rows kept as they are, CLS included. None if stage 1 is off: then all N patches enter the
            language model, and CLS does not. Also None with a ``budget``.
        contextual: C, the rows made by merging; 0 if ``dominant`` is None.
        cluster_width: W, patches per contextual row, on average. None means no limit: every patch that is not dominant
            joins a cluster (VisionZip). It is also None if stage 1 is off.
        keep: for each boundary, the share of the entering tokens that the segment behind it holds; in [0, 1], never
            rising.
        guide: which text rows rank visual tokens in stage 2, one of ``GUIDE_CHOICES``.
        preset: the preset's name, ``custom`` or ``off``.
        budget: what every image may have, where images differ in size and the counts follow from each image's own.
    """

    dominant: float | None
    contextual: float
    cluster_width: int | None
    keep: tuple[float, ...]
    guide: str
    preset: str
    budget: Budget | None = None

    @property
    def has_stage1(self) -> bool:
        """Whether stage 1 may cut anything."""
        return self.dominant is not None or self.budget is not None

    @property
    def has_counts(self) -> bool:
        """Whether stage 1 keeps a number of rows, not only shares of an image's tokens."""
        return self.dominant is not None and max(self.dominant, self.contextual) >= 1

    @property
    def drops(self) -> bool:
        """Whether stage 2 may drop anything."""
        return any(share < 1 for share in self.keep)

    @property
    def is_off(self) -> bool:
        """Whether neither stage removes anything."""
        return not self.has_stage1 and not self.drops

    def without_stage2(self) -> CompressionSettings:
        """The same settings with stage 2 off."""
        keep = (1.0,) * len(self.keep)
        return replace(self, keep=keep, preset=CUSTOM if self.has_stage1 else OFF)

    def num_entering(self, num_patches: int) -> int:
        """Visual tokens of one image that enter the language model: D + C, or all N patches. Not with a budget."""
        assert self.budget is None, f"{self=}"
        if self.dominant is None:
            return num_patches
        return sum(round(n * num_patches) if n < 1 else int(n) for n in (self.dominant, self.contextual))

    def segment_counts(self, num_patches: int) -> tuple[int, ...]:
        """Visual tokens of one image in each segment, if the image is a pool of its own."""
        entering = self.num_entering(num_patches)
        return tuple(num_kept(entering, share) for share in (1.0, *self.keep))

    def layer_average(self, shape: ModelShape) -> float:
        """Visual tokens of one image, averaged over all decoder layers: the budget that papers print."""
        return layer_average(self.segment_counts(shape.num_patches), shape.segment_layers)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types. Where there is a budget, it is ``reduction`` or ``visual_tokens``."""
        fields = {**asdict(self), "keep": list(self.keep)}
        budget = fields.pop("budget")
        if self.budget is None:
            return fields
        return fields | ({"reduction": round(1 - budget[0], 10)} if budget[1] else {"visual_tokens": budget[0]})


def off_settings(shape: ModelShape) -> CompressionSettings:
    """Settings that leave a request untouched."""
    keep = (1.0,) * len(shape.boundaries)
    return CompressionSettings(None, 0, None, keep, DEFAULT_GUIDE, OFF)
