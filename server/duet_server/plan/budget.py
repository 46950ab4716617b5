"""From a budget, visual tokens of one image averaged over decoder layers, to the largest settings that meet it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

from duet_server.plan.presets import DUET_PRESETS, REFERENCE_NUM_PATCHES, duet_keep
from duet_server.plan.segments import num_kept
from duet_server.plan.settings import CUSTOM, DEFAULT_CLUSTER_WIDTH, CompressionSettings, off_settings
from duet_server.plan.shape import ModelShape

# Absorbs the rounding of (1 - reduction) * N; no two settings' averages lie this close.
TOLERANCE = 1e-9


def smallest_average(shape: ModelShape) -> float:
    """The smallest layer average that a budget can reach on this model."""
    smallest = _stage1_settings(shape, 1) if shape.vision.has_cls else _stage2_settings(shape, 0)
    return smallest.layer_average(shape)


def settings_for_budget(budget: float, shape: ModelShape) -> CompressionSettings:
    """The settings with the largest layer average at or below ``budget``, which they miss by less than a token.

    Up to what stage 1 reaches with DUET's keeps, the budget sets stage 1's counts. Above it stage 1 goes off, and the
    keeps move from DUET's towards 1. ``budget`` lies between ``smallest_average(shape)`` and N.
    """
    num_patches = shape.vision.num_patches
    limit = budget + TOLERANCE
    assert smallest_average(shape) <= limit, f"{budget=} {shape=}"
    if limit >= num_patches:
        return off_settings(shape)
    if shape.vision.has_cls and limit < _stage1_settings(shape, num_patches + 1).layer_average(shape):
        totals = range(1, num_patches + 1)
        fitting = bisect_right(totals, limit, key=lambda total: _stage1_settings(shape, total).layer_average(shape))
        return _stage1_settings(shape, totals[fitting - 1])
    steps = range(num_patches - _last_count(shape))
    fitting = bisect_right(steps, limit, key=lambda step: _stage2_settings(shape, step).layer_average(shape))
    return _stage2_settings(shape, steps[fitting - 1])


def split_total(total: int, num_patches: int) -> tuple[int, int]:
    """Split ``total`` rows into (D, C) as the authors' presets do, interpolating the share of C between them.

    The share is constant below the smallest preset and falls to 0 at N + 1, where CLS and every patch is kept.
    """
    contextual = round(total * _contextual_share(total, num_patches))
    return total - contextual, contextual


def _contextual_share(total: int, num_patches: int) -> float:
    counts = sorted(preset.counts for preset in DUET_PRESETS.values() if preset.counts)
    scale = num_patches / REFERENCE_NUM_PATCHES
    points = [(sum(pair) * scale, pair[1] / sum(pair)) for pair in counts]
    points.append((num_patches + 1, 0.0))
    if total <= points[0][0]:
        return points[0][1]
    for (start, start_share), (end, end_share) in pairwise(points):
        if total <= end:
            return start_share + (end_share - start_share) * (total - start) / (end - start)
    raise AssertionError(f"{total=} exceeds {num_patches=} and CLS")


def _stage1_settings(shape: ModelShape, total: int) -> CompressionSettings:
    dominant, contextual = split_total(total, shape.vision.num_patches)
    off = off_settings(shape)
    return replace(
        off,
        dominant=dominant,
        contextual=contextual,
        cluster_width=DEFAULT_CLUSTER_WIDTH,
        keep=duet_keep(shape),
        preset=CUSTOM,
    )


def _stage2_settings(shape: ModelShape, step: int) -> CompressionSettings:
    """Stage 1 off, and ``step`` more tokens in the last segment than with DUET's keeps.

    The other segments move along in proportion. The last one has the longest way to N, so that no segment moves by more
    than a token a step, and neither does the layer average.
    """
    num_patches, steps = shape.vision.num_patches, shape.vision.num_patches - _last_count(shape)
    bases = [num_kept(num_patches, share) for share in duet_keep(shape)]
    counts = [base + (num_patches - base) * step // steps for base in bases]
    keep = tuple(_keep_of(count, num_patches) for count in counts)
    return replace(off_settings(shape), keep=keep, preset=CUSTOM)


def _last_count(shape: ModelShape) -> int:
    """Tokens of an image in the last segment under DUET's keeps, all N entering."""
    return num_kept(shape.vision.num_patches, (1.0, *duet_keep(shape))[-1])


def _keep_of(count: int, num_patches: int) -> float:
    """A keep that floors to exactly ``count`` of ``num_patches``, safe from rounding; 0 and 1 hold for every pool."""
    return count / num_patches if count in (0, num_patches) else (count + 0.5) / num_patches
