from __future__ import annotations

import numpy as np
import pytest

from duet_training.demo.drawing import draw_scene
from duet_training.demo.scene import CANVAS, COLORS, SHAPES, Thing

_NEAR = {"red": 0, "green": 1, "blue": 2}


def draw(*things: Thing, seed: int = 0) -> np.ndarray:
    picture = draw_scene(things, np.random.default_rng(seed))
    assert (picture.size, picture.mode) == ((CANVAS, CANVAS), "RGB")
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", list(_NEAR))
def test_the_center_has_the_color(shape: str, color: str):
    red_green_blue = draw(Thing(shape, "", color, "large", 84, 60, 18))[60, 84]
    assert red_green_blue.argmax() == _NEAR[color]


def test_a_thing_changes_its_own_pixels_alone():
    background = draw()
    for shape, glyph in [("star", ""), ("letter", "K")]:
        changed = (draw(Thing(shape, glyph, "white", "large", 50, 100, 18)) - background != 0).any(axis=2)
        y, x = np.nonzero(changed)
        assert len(y) > 100
        assert np.hypot(x - 50, y - 100).max() <= 18 * 1.5


def test_backgrounds_are_muted_and_differ():
    first, second = draw(seed=1), draw(seed=2)
    assert (first != second).mean() > 0.9
    assert 60 <= first.min() <= first.max() <= 195


def test_every_color_is_distinct():
    centers = [draw(Thing("circle", "", color, "large", 84, 84, 18))[84, 84] for color in COLORS]
    distances = [np.abs(a - b).max() for i, a in enumerate(centers) for b in centers[:i]]
    assert min(distances) > 40
