"""CompressionSettings: the compression of a request, resolved for one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from duet_server.plan.cost import layer_average
from duet_server.plan.segments import num_kept
from duet_server.plan.shape import ModelShape

DEFAULT_CLUSTER_WIDTH = 4
DEFAULT_GUIDE = "salient"
CUSTOM = "custom"
OFF = "off"


@dataclass(frozen=True, slots=True)
class CompressionSettings:
    """Resolved settings: counts per image for stage 1, one keep per boundary for stage 2.

    Attributes:
        dominant: D, the rows kept as they are, CLS included. None if stage 1 is off: then all N patches enter the
            language model, and CLS does not.
        contextual: C, the rows made by merging; 0 if stage 1 is off.
        cluster_width: W, patches per contextual row, on average. None means no limit: every patch that is not dominant
            joins a cluster (VisionZip). It is also None if stage 1 is off.
        keep: for each boundary, the share of the entering tokens that the segment behind it holds; in [0, 1], never
            rising.
        guide: which text rows rank visual tokens in stage 2, one of ``GUIDE_CHOICES``.
        preset: the preset's name, ``custom`` or ``off``.
    """

    dominant: int | None
    contextual: int
    cluster_width: int | None
    keep: tuple[float, ...]
    guide: str
    preset: str

    @property
    def drops(self) -> bool:
        """Whether stage 2 may drop anything."""
        return any(share < 1 for share in self.keep)

    @property
    def is_off(self) -> bool:
        """Whether neither stage removes anything."""
        return self.dominant is None and not self.drops

    def without_stage2(self) -> CompressionSettings:
        """The same settings with stage 2 off."""
        keep = (1.0,) * len(self.keep)
        return replace(self, keep=keep, preset=OFF if self.dominant is None else CUSTOM)

    def num_entering(self, num_patches: int) -> int:
        """Visual tokens of one image that enter the language model: D + C, or all N patches."""
        return num_patches if self.dominant is None else self.dominant + self.contextual

    def segment_counts(self, num_patches: int) -> tuple[int, ...]:
        """Visual tokens of one image in each segment, if the image is a pool of its own."""
        entering = self.num_entering(num_patches)
        return tuple(num_kept(entering, share) for share in (1.0, *self.keep))

    def layer_average(self, shape: ModelShape) -> float:
        """Visual tokens of one image, averaged over all decoder layers: the budget that papers print."""
        return layer_average(self.segment_counts(shape.vision.num_patches), shape.segment_layers)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return {**asdict(self), "keep": list(self.keep)}


def off_settings(shape: ModelShape) -> CompressionSettings:
    """Settings that leave a request untouched."""
    keep = (1.0,) * len(shape.boundaries)
    return CompressionSettings(None, 0, None, keep, DEFAULT_GUIDE, OFF)
