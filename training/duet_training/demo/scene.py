"""A scene: one to eight coloured things with a size and a place. Kinds and colours are few, so that some repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CANVAS = 168  # side length in pixels
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
GLYPHS = {"letter": "ACEFHKLPRTXY", "digit": "0123456789"}
KINDS = (*SHAPES, *GLYPHS)
RADII = {"small": (9, 12), "large": (16, 20)}  # pixels, both ends included
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
MAX_THINGS = 8

_THIRD = CANVAS / 3
_CLEAR_OF_THIRDS = 4  # pixels between a centre and the nearest other place, so that every place is unambiguous
_GAP = 3  # pixels between two things, and to the border
_TRIES = 60


@dataclass(frozen=True)
class Thing:
    """One thing in a picture. ``glyph`` is its letter or digit, empty for shapes; x, y is its centre in pixels."""

    kind: str
    glyph: str
    color: str
    size: str
    x: int
    y: int
    radius: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def place(self) -> str:
        return PLACES[3 * int(self.y // _THIRD) + int(self.x // _THIRD)]


Scene = tuple[Thing, ...]


def make_scene(rng: np.random.Generator) -> Scene:
    """A random scene. A crowded one may have fewer things than intended, but always at least one."""
    num_things = int(rng.integers(1, MAX_THINGS + 1))
    kinds = rng.choice(KINDS, size=int(rng.integers(2, 6)), replace=False)
    colors = rng.choice(COLORS, size=int(rng.integers(2, 6)), replace=False)
    things: list[Thing] = []
    while len(things) < num_things:
        thing = _place_thing(rng, str(rng.choice(kinds)), str(rng.choice(colors)), things)
        if thing is None:
            break
        things.append(thing)
    return tuple(things)


def _place_thing(rng: np.random.Generator, kind: str, color: str, others: list[Thing]) -> Thing | None:
    """A thing that overlaps none of the others; None if no place was found."""
    glyph = str(rng.choice(list(GLYPHS[kind]))) if kind in GLYPHS else ""
    for _ in range(_TRIES):
        size = str(rng.choice(list(RADII)))
        low, high = RADII[size]
        radius = int(rng.integers(low, high + 1))
        x, y = (int(value) for value in rng.integers(radius + _GAP, CANVAS - radius - _GAP, size=2))
        is_clear = all(min(value % _THIRD, -value % _THIRD) >= _CLEAR_OF_THIRDS for value in (x, y))
        if is_clear and all(math.hypot(x - o.x, y - o.y) >= radius + o.radius + _GAP for o in others):
            return Thing(kind, glyph, color, size, x, y, radius)
    return None
