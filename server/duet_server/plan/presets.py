"""The presets: settings of DUET and of related methods, scaled to any model and boundaries."""

from __future__ import annotations

from dataclasses import dataclass

from duet_server.plan.errors import SettingsError
from duet_server.plan.settings import DEFAULT_CLUSTER_WIDTH, DEFAULT_GUIDE, OFF, CompressionSettings, off_settings
from duet_server.plan.shape import ModelShape

# The authors' counts are made for this many patches: CLIP with 336 pixels and patches of 14.
REFERENCE_NUM_PATCHES = 576

Schedule = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """The settings of a method: counts of stage 1 for 576 patches, keeps of stage 2 by depth.

    ``counts`` is (D, C), or None with stage 1 off. ``schedule`` holds pairs of a depth and the keep from there on. A
    depth below 1 is a share of the decoder's layers; a depth of 1 or more is a layer index. A schedule of None means
    DUET's keeps, which fit any boundaries.
    """

    counts: tuple[int, int] | None
    cluster_width: int | None = None
    schedule: tuple[tuple[float, float], ...] | None = ()
    guide: str = DEFAULT_GUIDE


DUET_PRESETS = {
    "light": Preset((300, 7), DEFAULT_CLUSTER_WIDTH, None),
    "balanced": Preset((170, 32), DEFAULT_CLUSTER_WIDTH, None),
    "aggressive": Preset((72, 30), DEFAULT_CLUSTER_WIDTH, None),
}

# VisionZip has one setting per budget. This one has 64 tokens, the budget of `aggressive` (arXiv 2412.04467).
OTHER_PRESETS = {
    "visionzip": Preset((54, 10)),
    "pyramiddrop": Preset(None, schedule=((1 / 4, 0.5), (1 / 2, 0.25), (3 / 4, 0.125)), guide="last"),
    "fastv": Preset(None, schedule=((2, 0.5),), guide="last"),
}

PRESETS = {**DUET_PRESETS, **OTHER_PRESETS}


def presets(shape: ModelShape) -> dict[str, CompressionSettings]:
    """The presets that this model can serve with its boundaries, by name."""
    served = {name: _settings(name, preset, shape) for name, preset in PRESETS.items() if not _missing(preset, shape)}
    return {OFF: off_settings(shape), **served}


def find_preset(name: object, shape: ModelShape, field: str) -> CompressionSettings:
    """The settings of a preset.

    Raises:
        SettingsError: if no preset has this name, or the model cannot serve it with its boundaries.
    """
    available = presets(shape)
    if isinstance(name, str) and name in available:
        return available[name]
    expected = f"one of {', '.join(available)}"
    if isinstance(name, str) and name in PRESETS:
        expected = f"{expected} ({name} needs {_missing(PRESETS[name], shape)})"
    raise SettingsError(field, name, expected)


def duet_keep(shape: ModelShape) -> tuple[float, ...]:
    """DUET's keeps: 0.5 from half of the depth on, 0 from three quarters on.

    If the server lacks one of these two boundaries, ``default_keep`` is used instead.
    """
    half, three_quarters = (round(share * shape.decoder.num_layers) for share in (1 / 2, 3 / 4))
    if {half, three_quarters} <= set(shape.boundaries):
        return _keep_at(shape.boundaries, ((half, 0.5), (three_quarters, 0.0)))
    return default_keep(len(shape.boundaries))


def default_keep(num_boundaries: int) -> tuple[float, ...]:
    """Keeps that depend on the number of boundaries only: (0.5, 0) for two, otherwise 0.5, 0.25, 0.125 and so on."""
    return (0.5, 0.0) if num_boundaries == 2 else tuple(0.5 ** (idx + 1) for idx in range(num_boundaries))


def scale_counts(counts: tuple[int, int], num_patches: int) -> tuple[int, int]:
    """Scale (D, C) from 576 patches to ``num_patches``. D is at least 1, since CLS always stays."""
    dominant, contextual = (round(count * num_patches / REFERENCE_NUM_PATCHES) for count in counts)
    return max(1, dominant), contextual


def _settings(name: str, preset: Preset, shape: ModelShape) -> CompressionSettings:
    schedule = _layer_schedule(preset, shape)
    keep = duet_keep(shape) if schedule is None else _keep_at(shape.boundaries, schedule)
    if preset.counts is None:
        return CompressionSettings(None, 0, None, keep, preset.guide, name)
    dominant: float
    contextual: float
    dominant, contextual = preset.counts
    if shape.vision.num_patches is None:
        dominant, contextual = dominant / REFERENCE_NUM_PATCHES, contextual / REFERENCE_NUM_PATCHES
    else:
        dominant, contextual = scale_counts(preset.counts, shape.vision.num_patches)
    return CompressionSettings(dominant, contextual, preset.cluster_width, keep, preset.guide, name)


def _missing(preset: Preset, shape: ModelShape) -> str:
    """The requirement of the preset that the model does not meet; empty if it meets all."""
    needed = {layer_idx for layer_idx, _ in _layer_schedule(preset, shape) or ()}
    if needed <= set(shape.boundaries):
        return ""
    return f"the server's boundaries to include {', '.join(map(str, sorted(needed)))}"


def _layer_schedule(preset: Preset, shape: ModelShape) -> Schedule | None:
    if preset.schedule is None:
        return None
    num_layers = shape.decoder.num_layers
    return tuple((round(depth * num_layers if depth < 1 else depth), keep) for depth, keep in preset.schedule)


def _keep_at(boundaries: tuple[int, ...], schedule: Schedule) -> tuple[float, ...]:
    """The keep at each boundary: the smallest that the schedule has up to this depth; 1 before its first depth."""
    return tuple(min((keep for depth, keep in schedule if depth <= edge), default=1.0) for edge in boundaries)
