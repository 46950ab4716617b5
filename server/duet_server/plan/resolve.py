"""resolve_settings(): from the decoded ``compression`` field of a request to settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from duet_server.plan.budget import TOLERANCE, settings_for_budget, smallest_average
from duet_server.plan.cost import layer_average
from duet_server.plan.errors import SettingsError
from duet_server.plan.layout import GUIDE_CHOICES
from duet_server.plan.presets import REFERENCE_NUM_PATCHES, duet_keep, find_preset
from duet_server.plan.segments import is_schedule
from duet_server.plan.settings import (
    CUSTOM,
    DEFAULT_CLUSTER_WIDTH,
    DEFAULT_GUIDE,
    OFF,
    Budget,
    CompressionSettings,
    off_settings,
)
from duet_server.plan.shape import ModelShape

DEFAULT_MAX_REDUCTION = 0.97
MOST_PATCHES = 1 << 16  # the widest cluster where images differ in size

FIELD = "compression"
COUNT_KEYS = ("dominant", "contextual", "keep")
MODIFIER_KEYS = ("cluster_width", "guide")
KEYS = ("preset", "reduction", "visual_tokens", *COUNT_KEYS, *MODIFIER_KEYS)
OLD_GUIDE_KEY = "text"  # accepted instead of guide
FORMS = "exactly one of preset, reduction, visual_tokens or explicit counts (dominant and contextual, keep, or all)"

CompressionField = str | Mapping[str, object]  # a preset's name, or an object as JSON decodes it


def resolve_settings(
    request: CompressionField | None,
    shape: ModelShape,
    *,
    default: CompressionField = OFF,
    max_reduction: float = DEFAULT_MAX_REDUCTION,
) -> CompressionSettings:
    """Resolve the ``compression`` field of a request. Only this function turns a budget into counts.

    The field is a preset's name, or a mapping with exactly one of these:

    - ``preset``: a preset's name.
    - ``reduction``: the share of visual tokens to remove.
    - ``visual_tokens``: the budget, visual tokens averaged over decoder layers.
    - explicit counts: ``dominant`` and ``contextual`` (without ``keep``, stage 2 is off), ``keep`` (without the other
      two, stage 1 is off), or all three.

    ``guide`` and ``cluster_width`` (None: no limit) may accompany each of them.

    Reduction and budget refer to one image, averaged over decoder layers. The layer average of the settings is within
    the budget and less than a token below it. Settings that remove nothing resolve to ``off``.

    Where images differ in size, presets are shares, counts hold for every unit, and a reduction or a budget stays one:
    each image gets its own counts from :func:`duet_server.plan.cut_units` and :func:`settings_for_item`. Limits that
    depend on the size are for :func:`check_item`.

    Args:
        request: the field; None if the request has none.
        shape: the model.
        default: used if ``request`` is None.
        max_reduction: the largest reduction that a request may have, from 0 to 1.

    Raises:
        SettingsError: if the field has another form, does not fit the model, or exceeds ``max_reduction``.
    """
    if not _is_number(max_reduction) or not 0 <= max_reduction <= 1:
        raise SettingsError("max_reduction", max_reduction, "a number from 0 to 1")
    asked = default if request is None else request
    fields = {"preset": asked} if isinstance(asked, str) else asked
    _check_keys(fields)
    settings = _apply_modifiers(_resolve_base(fields, asked, shape, max_reduction), fields, shape)
    return off_settings(shape) if settings.is_off else settings


def _resolve_base(
    fields: Mapping[str, object], asked: CompressionField, shape: ModelShape, limit: float
) -> CompressionSettings:
    """The settings before ``guide`` and ``cluster_width`` apply, checked against the limit."""
    if "reduction" in fields:
        return _from_reduction(fields["reduction"], shape, limit)
    if "visual_tokens" in fields:
        return _from_visual_tokens(fields["visual_tokens"], shape, limit)
    if "preset" in fields:
        field = FIELD if isinstance(asked, str) else f"{FIELD}.preset"
        settings = find_preset(fields["preset"], shape, field)
    else:
        settings = _from_counts(fields, shape)
    _check_limit(settings, asked, shape, limit)
    return settings


def _check_keys(fields: object) -> None:
    """Raise unless ``fields`` is a mapping of known keys in exactly one of the forms."""
    if not isinstance(fields, Mapping):
        raise SettingsError(FIELD, fields, "a preset's name or an object")
    modifiers = (*MODIFIER_KEYS, OLD_GUIDE_KEY)
    for key in fields:
        if key not in (*KEYS, OLD_GUIDE_KEY):
            raise SettingsError(f"{FIELD}.{key}", fields[key], f"only the fields {', '.join(KEYS)}")
    if "guide" in fields and fields.get(OLD_GUIDE_KEY, fields["guide"]) != fields["guide"]:
        raise SettingsError(f"{FIELD}.{OLD_GUIDE_KEY}", fields[OLD_GUIDE_KEY], "the same value as guide")
    forms = {"counts" if key in COUNT_KEYS else key for key in fields if key not in modifiers}
    if len(forms) != 1:
        raise SettingsError(FIELD, dict(fields), FORMS)


def _from_reduction(reduction: object, shape: ModelShape, limit: float) -> CompressionSettings:
    num_patches = shape.vision.num_patches
    smallest = smallest_average(shape) / num_patches if num_patches else 0.0
    largest = 1 - max(smallest, 1 - limit)
    if not _is_number(reduction) or not 0 <= reduction <= largest + TOLERANCE:
        raise SettingsError(f"{FIELD}.reduction", reduction, f"a number from 0 to {_round_down(largest)}")
    if num_patches is None:
        return _settings_of_budget(Budget(max(0.0, 1 - reduction), is_share=True), shape)
    return settings_for_budget(max(smallest_average(shape), (1 - reduction) * num_patches), shape)


def _from_visual_tokens(budget: object, shape: ModelShape, limit: float) -> CompressionSettings:
    num_patches = shape.vision.num_patches
    if num_patches is None:
        if not _is_number(budget) or not budget > 0:
            expected = "a number above 0, the layer average per image; smaller images stay whole"
            raise SettingsError(f"{FIELD}.visual_tokens", budget, expected)
        return _settings_of_budget(Budget(budget, is_share=False), shape)
    smallest = max(smallest_average(shape), (1 - limit) * num_patches)
    if not _is_number(budget) or not 0 < budget <= num_patches or budget < smallest - TOLERANCE:
        expected = f"a number from {_round_up(smallest)} to {num_patches}, the layer average per image"
        raise SettingsError(f"{FIELD}.visual_tokens", budget, expected)
    return settings_for_budget(budget, shape)


def _settings_of_budget(budget: Budget, shape: ModelShape) -> CompressionSettings:
    off = off_settings(shape)
    if budget.is_share and budget.amount >= 1:
        return off
    return replace(off, keep=duet_keep(shape), cluster_width=DEFAULT_CLUSTER_WIDTH, preset=CUSTOM, budget=budget)


def _from_counts(fields: Mapping[str, object], shape: ModelShape) -> CompressionSettings:
    keep = _check_keep(fields["keep"], shape) if "keep" in fields else off_settings(shape).keep
    if "dominant" not in fields and "contextual" not in fields:
        return CompressionSettings(None, 0, None, keep, DEFAULT_GUIDE, CUSTOM)
    check = _check_numbers if shape.vision.num_patches is None else _check_counts
    dominant, contextual = check(fields, shape)
    return CompressionSettings(dominant, contextual, DEFAULT_CLUSTER_WIDTH, keep, DEFAULT_GUIDE, CUSTOM)


def _check_counts(fields: Mapping[str, object], shape: ModelShape) -> tuple[int, int]:
    num_patches, num_cls = shape.num_patches, int(shape.vision.has_cls)
    dominant, contextual = fields.get("dominant"), fields.get("contextual")
    largest = num_patches + num_cls - 1
    if not _is_count(contextual) or not 0 <= contextual <= largest:
        expected = f"a whole number from 0 to {largest}, together with dominant"
        raise SettingsError(f"{FIELD}.contextual", contextual, expected)
    most = num_patches + num_cls - contextual
    if not _is_count(dominant) or not 1 <= dominant <= most:
        tokens = f"the class token and {num_patches} patches" if num_cls else f"{num_patches} patches"
        expected = f"a whole number from 1 to {most}: {tokens}, less contextual"
        raise SettingsError(f"{FIELD}.dominant", dominant, expected)
    return dominant, contextual


def _check_numbers(fields: Mapping[str, object], _shape: ModelShape) -> tuple[float, float]:
    """Counts or shares, where images differ in size. The counts of a unit are at most its tokens."""
    dominant, contextual = fields.get("dominant"), fields.get("contextual")
    if not _is_number(contextual) or contextual < 0 or not (contextual < 1 or _is_count(contextual)):
        expected = "a whole number from 0 on, or a share of an image's tokens below 1, together with dominant"
        raise SettingsError(f"{FIELD}.contextual", contextual, expected)
    if not _is_number(dominant) or dominant <= 0 or not (dominant < 1 or _is_count(dominant)):
        expected = "a whole number from 1 on, or a share of an image's tokens between 0 and 1"
        raise SettingsError(f"{FIELD}.dominant", dominant, expected)
    if dominant < 1 and 0 < contextual < 1 and dominant + contextual > 1:
        expected = f"at most {_round_down(1 - dominant)}, since dominant is {dominant:g}"
        raise SettingsError(f"{FIELD}.contextual", contextual, expected)
    return dominant, contextual


def _check_keep(keep: object, shape: ModelShape) -> tuple[float, ...]:
    if not is_schedule(keep, len(shape.boundaries)):
        raise SettingsError(f"{FIELD}.keep", keep, _expected_keep(shape.boundaries))
    return tuple(float(share) for share in keep)


def _expected_keep(boundaries: tuple[int, ...]) -> str:
    if not boundaries:
        return "an empty list, since this server has no boundaries"
    noun = "number" if len(boundaries) == 1 else "numbers"
    layers = ", ".join(map(str, boundaries))
    return f"{len(boundaries)} {noun} from 0 to 1 that never rise, one for each boundary ({layers})"


def _apply_modifiers(
    settings: CompressionSettings, fields: Mapping[str, object], shape: ModelShape
) -> CompressionSettings:
    """Set ``guide`` and ``cluster_width``. If they change a preset, its name becomes ``custom``."""
    guide_key = OLD_GUIDE_KEY if OLD_GUIDE_KEY in fields else "guide"
    guide, cluster_width = fields.get(guide_key, settings.guide), fields.get("cluster_width", settings.cluster_width)
    if not isinstance(guide, str) or guide not in GUIDE_CHOICES:
        raise SettingsError(f"{FIELD}.{guide_key}", guide, f"one of {', '.join(GUIDE_CHOICES)}")
    num_patches = shape.vision.num_patches or MOST_PATCHES
    widest = max(num_patches, settings.cluster_width or 1)  # tiny models have fewer patches than the default width
    if cluster_width is not None and not (_is_count(cluster_width) and 1 <= cluster_width <= widest):
        expected = f"a whole number from 1 to {widest}, or null for clusters of any size"
        raise SettingsError(f"{FIELD}.cluster_width", cluster_width, expected)
    width = cluster_width if settings.has_stage1 else None
    changed = replace(settings, guide=guide, cluster_width=width)
    return settings if changed == settings else replace(changed, preset=CUSTOM)


def _check_limit(settings: CompressionSettings, asked: CompressionField, shape: ModelShape, limit: float) -> None:
    """Raise if the settings remove more than the server allows. Counts for images of any size wait for check_item."""
    num_patches = shape.vision.num_patches
    if num_patches is None and settings.has_counts:
        return
    shape = shape if num_patches else shape.at(REFERENCE_NUM_PATCHES)
    _check_average(settings.layer_average(shape), shape.num_patches, asked, limit)


def check_item(
    settings: CompressionSettings, asked: object, shape: ModelShape, counts: Sequence[int], limit: float
) -> None:
    """Raise if the settings remove more of an image than the server allows, where this depends on the image's size.

    Args:
        settings: the request's settings.
        asked: what the client wrote.
        shape: the model.
        counts: visual tokens of the image without compression, then those that each segment holds.
        limit: the largest reduction that a request may have.

    Raises:
        SettingsError: if so.
    """
    if shape.vision.num_patches is not None:
        return
    if settings.has_counts:
        _check_average(layer_average(counts[1:], shape.segment_layers), counts[0], asked, limit)
    elif settings.budget and not settings.budget.is_share:
        _check_average(settings.budget.of(counts[0]), counts[0], asked, limit, "asks for")


def _check_average(average: float, num_tokens: int, asked: Any, limit: float, verb: str = "keeps") -> None:
    smallest = (1 - limit) * num_tokens
    if average < smallest - TOLERANCE:
        expected = (
            f"a layer average of at least {_round_up(smallest)} visual tokens per image, for a reduction of at most "
            f"{limit:g}; this request {verb} {average:g}"
        )
        raise SettingsError(FIELD, asked, expected)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _round_up(bound: float) -> str:
    """A lower bound for an error message. It is rounded up, so that the server accepts it as a value."""
    return f"{math.ceil(round(bound * 10_000, 6)) / 10_000:.10g}"


def _round_down(bound: float) -> str:
    """An upper bound for an error message. It is rounded down for the same reason."""
    return f"{math.floor(round(bound * 10_000, 6)) / 10_000:.10g}"
