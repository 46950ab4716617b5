"""The compared methods. Each chooses the settings that come closest to a budget without exceeding it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.accuracy.selection import OWN, RANDOM_KEEP, UNIFORM_POOLING, largest_grid
from duet_server.plan import (
    CompressionSettings,
    DecoderShape,
    ModelShape,
    SettingsError,
    VisionShape,
    resolve_settings,
)
from duet_server.plan.budget import split_total
from duet_server.plan.presets import OTHER_PRESETS
from duet_server.plan.settings import CUSTOM, DEFAULT_CLUSTER_WIDTH

OFF = "off"
DUET = "DUET, salient"  # the authors' variant
PYRAMID_DEPTHS = tuple(depth for depth, _ in OTHER_PRESETS["pyramiddrop"].schedule or ())
((FASTV_LAYER, _),) = OTHER_PRESETS["fastv"].schedule or ()
VISIONZIP_COUNTS = OTHER_PRESETS["visionzip"].counts or (0, 0)
SHARES = tuple(step / 10_000 for step in range(10_001))

Fields = dict[str, Any]  # a JSON object in the `compression` field


@dataclass(frozen=True, slots=True)
class Method:
    """``fields_for`` takes a budget (visual tokens of one image, averaged over layers) and the model's shape.

    ``selection`` names the stage 1 that the server must run.
    """

    name: str
    fields_for: Callable[[float, ModelShape], Fields]
    selection: str = OWN


@dataclass(frozen=True, slots=True)
class Setting:
    """A method at a share of the visual tokens, and the ``compression`` field that asks for it."""

    method: str
    share: float
    compression: str | Fields


UNCOMPRESSED = Setting(OFF, 1.0, OFF)


def settings_for(
    methods: Sequence[Method], shares: Sequence[float], shape: ModelShape, max_reduction: float
) -> tuple[list[Setting], list[str]]:
    """Every method at every share, and a line for each setting that this model and its boundaries cannot serve."""
    settings, left_out = [], []
    for method in methods:
        for share in shares:
            try:
                fields = method.fields_for(round(share * shape.num_patches, 6), shape)
                resolve_settings(fields, shape, max_reduction=max_reduction)
                settings.append(Setting(method.name, share, fields))
            except SettingsError as error:
                left_out.append(f"{method.name} at {share:.0%}: {error}")
    return settings, left_out


def described_shape(description: Mapping[str, Any]) -> ModelShape:
    """The model's shape from the body of ``GET /v1/compression``; sizes that do not matter for budgets are 0."""
    decoder = DecoderShape(description["num_layers"], *[0] * 6)
    vision = VisionShape(description["visual_tokens_per_image"], True, *[0] * 5)
    return ModelShape(decoder, vision, tuple(description["boundaries"]))


def boundaries_for(num_layers: int) -> list[int]:
    """Boundaries at which every method can drop. PyramidDrop's include DUET's."""
    return sorted(layer for layer in {FASTV_LAYER, *_pyramid_layers(num_layers)} if 0 < layer < num_layers)


def _duet(guide: str, budget: float, shape: ModelShape) -> Fields:
    return {"visual_tokens": budget, "guide": guide}


def _duet_stage1(budget: float, shape: ModelShape) -> Fields:
    """DUET's cluster width, and its share of contextual tokens for this total."""
    dominant, contextual = split_total(int(budget), shape.num_patches)
    return {"dominant": dominant, "contextual": contextual, "cluster_width": DEFAULT_CLUSTER_WIDTH}


def _visionzip(budget: float, shape: ModelShape) -> Fields:
    contextual = round(int(budget) * VISIONZIP_COUNTS[1] / sum(VISIONZIP_COUNTS))
    return {"dominant": int(budget) - contextual, "contextual": contextual, "cluster_width": None}


def _pyramiddrop(budget: float, shape: ModelShape) -> Fields:
    """To meet the budget, the method's own parameter changes: the ratio kept at each of its layers, by default 0.5."""
    layers = _pyramid_layers(shape.decoder.num_layers)

    def keep(ratio: float) -> list[float]:
        return [ratio ** sum(layer <= boundary for layer in layers) for boundary in shape.boundaries]

    return _largest_keep(keep, layers, budget, shape)


def _fastv(budget: float, shape: ModelShape) -> Fields:
    def keep(share: float) -> list[float]:
        return [share if boundary >= FASTV_LAYER else 1.0 for boundary in shape.boundaries]

    return _largest_keep(keep, (FASTV_LAYER,), budget, shape)


def _random_keep(budget: float, shape: ModelShape) -> Fields:
    return {"dominant": int(budget), "contextual": 0}


def _uniform_pooling(budget: float, shape: ModelShape) -> Fields:
    return {"dominant": largest_grid(int(budget)) if budget >= 1 else 0, "contextual": 0}


def _largest_keep(
    keep: Callable[[float], list[float]], layers: Sequence[float], budget: float, shape: ModelShape
) -> Fields:
    """Stage 2 only, ranked by the prompt's last token. ``keep`` must rise with its argument, from 0 to 1."""
    if not set(layers) <= set(shape.boundaries):
        raise SettingsError("boundaries", shape.boundaries, f"a list that contains {', '.join(map(str, layers))}")

    def average(share: float) -> float:
        return CompressionSettings(None, 0, None, tuple(keep(share)), "last", CUSTOM).layer_average(shape)

    fitting = bisect_right(SHARES, budget, key=average)
    if not fitting:
        expected = f"at least {average(0.0):g}, because the layers before its first boundary hold every token"
        raise SettingsError("budget", budget, expected)
    return {"keep": keep(SHARES[fitting - 1]), "guide": "last"}


def _pyramid_layers(num_layers: int) -> tuple[int, ...]:
    return tuple(round(depth * num_layers) for depth in PYRAMID_DEPTHS)


METHODS = (
    Method(DUET, partial(_duet, "salient")),
    Method("DUET, all", partial(_duet, "all")),
    Method("DUET, last", partial(_duet, "last")),
    Method("DUET's stage 1", _duet_stage1),
    Method("VisionZip", _visionzip),
    Method("PyramidDrop", _pyramiddrop),
    Method("FastV", _fastv),
    Method("random keep", _random_keep, RANDOM_KEEP),
    Method("uniform pooling", _uniform_pooling, UNIFORM_POOLING),
)
SELECTIONS = (OWN, RANDOM_KEEP, UNIFORM_POOLING)
