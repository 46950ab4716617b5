"""From a budget (visual tokens of one image, averaged over decoder layers) to the largest settings within it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

from duet_server.plan.presets import DUET_PRESETS, REFERENCE_NUM_PATCHES, duet_keep
from duet_server.plan.segments import num_kept
from duet_server.plan.settings import CUSTOM, DEFAULT_CLUSTER_WIDTH, CompressionSettings, off_settings
from duet_server.plan.shape import ModelShape

# Absorbs the rounding of (1 - reduction) * N. Two averages that differ at all differ by more than this.
TOLERANCE = 1e-9


def smallest_average(shape: ModelShape) -> float:
    """The smallest layer average that a budget can reach: CLS alone, or DUET's keeps for a tower without CLS."""
    smallest = _stage1_settings(shape, 1) if shape.vision.has_cls else _stage2_settings(shape, 0)
    return smallest.layer_average(shape)


def settings_for_budget(budget: float, shape: ModelShape) -> CompressionSettings:
    """The settings with the largest layer average at or below ``budget``; the average is less than a token below it.

    There are two regimes. For LLaVA-1.5-7B (N = 576, boundaries 16 and 24 of 32 layers)::

        budget    0.5                          360.5                           576 = N
                   |------- counts move --------|--------- keeps move ----------|
        stage 1    D + C: 1        ->         N | off: all N patches enter      | off
        stage 2    DUET's keeps: (0.5, 0)       | (0.5, 0)        ->     (1, 1) | off

    Without CLS only the right regime exists, without boundaries only the left one. ``budget`` lies between
    ``smallest_average(shape)`` and N.
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
    """Split ``total`` rows into (D, C). The share of C is interpolated between the authors' presets.

    Below the smallest preset the share is constant. It falls to 0 at N + 1, where CLS and every patch are kept.
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
    raise AssertionError(f"{total=} exceeds {num_patches=} plus CLS")


def _stage1_settings(shape: ModelShape, total: int) -> CompressionSettings:
    """The left regime: stage 1 keeps ``total`` rows, stage 2 has DUET's keeps."""
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
    """The right regime: stage 1 is off, and the last segment holds ``step`` tokens more than under DUET's keeps.

    The other segments grow in proportion. The last segment has the longest way to N. So no segment grows by more than
    one token per step, and neither does the layer average. Tokens per segment for N = 576 and DUET's keeps (0.5, 0)::

        step   0: 576 288   0
        step 288: 576 432 288
        step 575: 576 575 575
    """
    num_patches, steps = shape.vision.num_patches, shape.vision.num_patches - _last_count(shape)
    bases = [num_kept(num_patches, share) for share in duet_keep(shape)]
    counts = [base + (num_patches - base) * step // steps for base in bases]
    keep = tuple(_keep_of(count, num_patches) for count in counts)
    return replace(off_settings(shape), keep=keep, preset=CUSTOM)


def _last_count(shape: ModelShape) -> int:
    """Tokens of one image in the last segment under DUET's keeps, if all N patches enter."""
    return num_kept(shape.vision.num_patches, (1.0, *duet_keep(shape))[-1])


def _keep_of(count: int, num_patches: int) -> float:
    """A keep with which ``num_kept`` gives exactly ``count`` of ``num_patches``.

    Half a token on top guards against rounding. The keeps 0 and 1 stay exact, so they hold for pools of any length.
    """
    return count / num_patches if count in (0, num_patches) else (count + 0.5) / num_patches
