"""Draws the kept patches on the pictures, as the vision tower sees them, and returns a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from duet_server.api.inspection.patches import Picture
from duet_server.plan import Unit, VisionShape

GAP, CAPTION, LEAST_SIDE = 12, 40, 336  # pixels
DIMMED, MERGED, MERGED_SHARE = 0.18, np.array([255, 176, 0]), 0.45
PAPER, INK = "white", "black"


def draw_overlay(
    pictures: Sequence[Picture], patches: Sequence[Mapping[str, Any]], processor: Any, vision: VisionShape
) -> bytes:
    """One row per unit of each picture: the unit, then a view of each segment, with dropped patches dark.

    Args:
        pictures: in the prompt's order.
        patches: one entry per unit, from :func:`duet_server.api.inspection.patches.describe_patches`.
        processor: the image processor; its mean and standard deviation undo the normalization.
        vision: the sizes of the tower's patches.
    """
    views = [view for picture in pictures for view in zip(picture.pixels, picture.units, strict=False)]
    rows = [
        _row(seen_picture(*view, processor, vision), described) for view, described in zip(views, patches, strict=True)
    ]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def seen_picture(pixels: torch.Tensor, unit: Unit, processor: Any, vision: VisionShape) -> np.ndarray:
    """A unit without normalization: ``[height, width, 3]`` uint8."""
    values = pixels.numpy() if pixels.dtype == torch.uint8 else pixels.float().numpy()
    values = (values if values.ndim == 3 else _joined(values, unit, vision)).transpose(1, 2, 0)
    if values.dtype == np.uint8:  # the tower normalizes them itself
        return values
    seen: np.ndarray = 255 * (values * processor.image_std + processor.image_mean)
    return seen.round().clip(0, 255).astype(np.uint8)


def _joined(patches: np.ndarray, unit: Unit, vision: VisionShape) -> np.ndarray:
    """The picture ``[3, height, width]`` of patches that lie token by token, each with all its frames."""
    merge, side = math.isqrt(vision.patches_per_token), vision.patch_size
    grid = patches.reshape(unit.rows, unit.columns, merge, merge, 3, vision.frames_per_patch, side, side)[..., 0, :, :]
    rows_first = grid.transpose(4, 0, 2, 5, 1, 3, 6)  # color, row of tokens, row of patches, row of pixels, columns
    return rows_first.reshape(3, unit.rows * merge * side, unit.columns * merge * side)


def _row(seen: np.ndarray, described: Mapping[str, Any]) -> Image.Image:
    segments = described["segments"]
    views = [seen, *(_view(seen, described, segment) for segment in segments)]
    captions = ["what the vision tower sees", *(_caption(segment) for segment in segments)]
    scale = max(1, -(-LEAST_SIDE // min(seen.shape[:2])))
    height, width = (side * scale for side in seen.shape[:2])
    row = Image.new("RGB", (GAP + len(views) * (width + GAP), height + CAPTION + GAP), PAPER)
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(15)
    for idx, (view, caption) in enumerate(zip(views, captions, strict=True)):
        left = GAP + idx * (width + GAP)
        draw.text((left, GAP), caption, INK, font)
        row.paste(Image.fromarray(view).resize((width, height), Image.Resampling.NEAREST), (left, CAPTION))
    return row


def _view(seen: np.ndarray, described: Mapping[str, Any], segment: Mapping[str, Any]) -> np.ndarray:
    num_rows, num_columns = described["grid"]
    merged = [patch for idx in segment["contextual"] for patch in described["stage1"]["contextual"][idx]["patches"]]
    is_kept, is_merged = (_mask(patches, num_rows, num_columns, seen) for patches in (segment["patches"], merged))
    tinted = seen * (1 - MERGED_SHARE) + MERGED * MERGED_SHARE
    return np.where(is_kept, seen, np.where(is_merged, tinted, seen * DIMMED)).astype(np.uint8)


def _mask(patches: Sequence[int], num_rows: int, num_columns: int, seen: np.ndarray) -> np.ndarray:
    """``[height, width, 1]``, true for the pixels of these patches."""
    grid = np.zeros(num_rows * num_columns, dtype=bool)
    grid[list(patches)] = True
    height, width = seen.shape[0] // num_rows, seen.shape[1] // num_columns
    return np.kron(grid.reshape(num_rows, num_columns), np.ones((height, width), dtype=bool))[:, :, None]


def _caption(segment: Mapping[str, Any]) -> str:
    start, end = segment["layers"]
    kept = len(segment["patches"]) + len(segment["contextual"]) + segment["cls"]
    return f"layers {start} to {end - 1}: {kept} tokens"
