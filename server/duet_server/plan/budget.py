"""From a budget (visual tokens of one image, averaged over decoder layers) to the largest settings within it."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from itertools import pairwise

from duet_server.plan.cost import layer_average
from duet_server.plan.presets import DUET_PRESETS, REFERENCE_NUM_PATCHES, duet_keep
from duet_server.plan.segments import num_kept
from duet_server.plan.settings import CUSTOM, DEFAULT_CLUSTER_WIDTH, Budget, CompressionSettings, off_settings
from duet_server.plan.shape import ModelShape

# Absorbs the rounding of (1 - reduction) * N. Two averages that differ at all differ by more than this.
TOLERANCE = 1e-9
MOST_TOKENS = 1 << 32  # of an image; a larger budget leaves every image whole


def smallest_average(shape: ModelShape) -> float:
    """The smallest layer average that a budget can reach: one token that enters, CLS if the tower has it."""
    return _stage1_settings(shape, 1).layer_average(shape)


def settings_for_budget(budget: float, shape: ModelShape) -> CompressionSettings:
    """The settings with the largest layer average at or below ``budget``; the average is less than a token below it.

    There are two regimes. For LLaVA-1.5-7B (N = 576, boundaries 16 and 24 of 32 layers)::

        budget    0.5                          360.5                           576 = N
                   |------- counts move --------|--------- keeps move ----------|
        stage 1    D + C: 1        ->         N | off: all N patches enter      | off
        stage 2    DUET's keeps: (0.5, 0)       | (0.5, 0)        ->     (1, 1) | off

    Without CLS the counts end at N - 1, without boundaries there is only the left regime. ``budget`` lies between
    ``smallest_average(shape)`` and N.
    """
    num_patches = shape.num_patches
    limit = budget + TOLERANCE
    assert smallest_average(shape) <= limit, f"{budget=} {shape=}"
    if limit >= num_patches:
        return off_settings(shape)
    most = num_patches + int(shape.vision.has_cls)  # with so many rows, stage 1 removes nothing
    if limit >= _stage1_settings(shape, most).layer_average(shape):
        return _whole_settings(limit, shape)
    totals = range(1, most)
    fitting = bisect_right(totals, limit, key=lambda total: _stage1_settings(shape, total).layer_average(shape))
    return _stage1_settings(shape, totals[fitting - 1])


def settings_for_item(
    settings: CompressionSettings, shape: ModelShape, num_tokens: int, *, is_cut: bool
) -> CompressionSettings:
    """The settings as they apply to one image or video of ``num_tokens`` visual tokens.

    Only a budget depends on the size. An image that stage 1 leaves whole gets larger keeps, up to its budget, unless
    stage 2 is off.
    """
    if settings.budget is None or is_cut or not settings.drops:
        return settings
    return replace(settings, keep=_whole_settings(settings.budget.of(num_tokens), shape.at(num_tokens)).keep)


def entering_total(budget: Budget, shape: ModelShape) -> float:
    """How many visual tokens of an image may enter for the layer average to meet the budget under DUET's keeps.

    A count, or a share of the image's tokens below 1; ``inf`` if all of them may.
    """
    weights = [layers / shape.decoder.num_layers for layers in shape.segment_layers]
    factor = sum(weight * share for weight, share in zip(weights, (1.0, *duet_keep(shape)), strict=True))
    if budget.is_share:
        share = (budget.amount + TOLERANCE) / factor
        return share if share < 1 else math.inf
    if budget.amount >= MOST_TOKENS:
        return math.inf
    totals = range(1, math.ceil(budget.amount / factor) + shape.decoder.num_layers)
    fitting = bisect_right(totals, budget.amount + TOLERANCE, key=lambda total: _duet_average(total, shape))
    return max(1, fitting)


def _duet_average(total: int, shape: ModelShape) -> float:
    counts = [num_kept(total, share) for share in (1.0, *duet_keep(shape))]
    return layer_average(counts, shape.segment_layers)


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
    dominant, contextual = split_total(total, shape.num_patches)
    off = off_settings(shape)
    return replace(
        off,
        dominant=dominant,
        contextual=contextual,
        cluster_width=DEFAULT_CLUSTER_WIDTH,
        keep=duet_keep(shape),
        preset=CUSTOM,
    )


def _whole_settings(limit: float, shape: ModelShape) -> CompressionSettings:
    """The right regime: the largest keeps within the limit, which is at least DUET's keeps' layer average."""
    steps = range(shape.num_patches - _last_count(shape) + 1)
    fitting = bisect_right(
        steps, limit + TOLERANCE, key=lambda step: _stage2_settings(shape, step).layer_average(shape)
    )
    return _stage2_settings(shape, steps[max(1, fitting) - 1])


def _stage2_settings(shape: ModelShape, step: int) -> CompressionSettings:
    """The right regime: stage 1 is off, and the last segment holds ``step`` tokens more than under DUET's keeps.

    The other segments grow in proportion. The last segment has the longest way to N. So no segment grows by more than
    one token per step, and neither does the layer average. Tokens per segment for N = 576 and DUET's keeps (0.5, 0)::

        step   0: 576 288   0
        step 288: 576 432 288
        step 575: 576 575 575
    """
    num_patches, steps = shape.num_patches, shape.num_patches - _last_count(shape)
    bases = [num_kept(num_patches, share) for share in duet_keep(shape)]
    counts = [base + (num_patches - base) * step // steps for base in bases]
    keep = tuple(_keep_of(count, num_patches) for count in counts)
    return replace(off_settings(shape), keep=keep, preset=CUSTOM)


def _last_count(shape: ModelShape) -> int:
    """Tokens of one image in the last segment under DUET's keeps, if all N patches enter."""
    return num_kept(shape.num_patches, (1.0, *duet_keep(shape))[-1])


def _keep_of(count: int, num_patches: int) -> float:
    """A keep with which ``num_kept`` gives exactly ``count`` of ``num_patches``.

    Half a token on top guards against rounding. The keeps 0 and 1 stay exact, so they hold for pools of any length.
    """
    return count / num_patches if count in (0, num_patches) else (count + 0.5) / num_patches
