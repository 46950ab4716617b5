"""Draws a scene as a picture: its things, with soft edges, on a busy background of muted colours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from duet_training.demo.scene import CANVAS, Scene, Thing

_SCALE = 2  # drawn larger and shrunk, for soft edges
_RGB = {
    "red": (215, 30, 35),
    "green": (25, 155, 50),
    "blue": (35, 70, 220),
    "yellow": (245, 220, 30),
    "purple": (145, 40, 170),
    "orange": (245, 135, 20),
    "white": (248, 248, 248),
    "black": (12, 12, 12),
}
_COLOR_JITTER = 12
_NUM_STROKES = 18


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """An RGB picture, ``CANVAS`` pixels wide and high; ``rng`` draws the background and varies the colours."""
    canvas = _background(rng)
    draw = ImageDraw.Draw(canvas)
    for thing in scene:
        jitter = rng.integers(-_COLOR_JITTER, _COLOR_JITTER + 1, size=3)
        fill = tuple(int(value) for value in np.clip(np.array(_RGB[thing.color]) + jitter, 0, 255))
        _draw_thing(draw, thing, fill)
    return canvas.resize((CANVAS, CANVAS), Image.Resampling.BOX)


def _background(rng: np.random.Generator) -> Image.Image:
    side = CANVAS * _SCALE
    clouds = 125 + rng.normal(0, 14, size=(6, 6, 1)) + rng.normal(0, 9, size=(6, 6, 3))
    canvas = Image.fromarray(np.clip(clouds, 70, 185).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    ends = rng.integers(0, side, size=(_NUM_STROKES, 4))
    tones = np.clip(125 + rng.normal(0, 22, size=(_NUM_STROKES, 1)) + rng.normal(0, 9, size=(_NUM_STROKES, 3)), 70, 185)
    for corners, tone, width in zip(ends, tones, rng.integers(1, 7, size=_NUM_STROKES), strict=True):
        draw.line(corners.tolist(), fill=tuple(int(value) for value in tone), width=int(width))
    return canvas


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, fill: tuple[int, ...]) -> None:
    x, y, radius = (value * _SCALE for value in (thing.x, thing.y, thing.radius))
    if thing.glyph:
        draw.text((x, y), thing.glyph, fill=fill, font=_font(round(radius * 2.3)), anchor="mm", stroke_width=2)
    elif thing.kind == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _OUTLINES[thing.kind]], fill=fill)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _star(num_points: int, inner: float, turn: float = -90) -> list[tuple[float, float]]:
    """Corners that lie alternately on the unit circle and on a circle of radius ``inner``."""
    radii = (1.0, inner)
    angles = [math.radians(turn + 180 * idx / num_points) for idx in range(2 * num_points)]
    return [(radii[idx % 2] * math.cos(a), radii[idx % 2] * math.sin(a)) for idx, a in enumerate(angles)]


def _cross(arm: float) -> list[tuple[float, float]]:
    quarter = [(-arm, -arm), (-arm, -1.0), (arm, -1.0)]
    return _turned(quarter)


def _turned(quarter: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    corners = list(quarter)
    return [turn(x, y) for turn in _QUARTER_TURNS for x, y in corners]


_QUARTER_TURNS = (
    lambda x, y: (x, y),
    lambda x, y: (-y, x),
    lambda x, y: (-x, -y),
    lambda x, y: (y, -x),
)
_OUTLINES = {
    "square": _turned([(-0.85, -0.85)]),
    "triangle": [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)],
    "star": _star(5, 0.42),
    "diamond": _turned([(0.0, -1.0)]),
    "cross": _cross(0.33),
}
