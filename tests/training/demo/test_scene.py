from __future__ import annotations

import math

import numpy as np
import pytest

from duet_training.demo.scene import (
    CANVAS,
    MAX_THINGS,
    PLACES,
    RADII,
    Thing,
    make_scene,
)

SCENES = [make_scene(np.random.default_rng(seed)) for seed in range(200)]


def test_things_keep_clear_of_each_other_and_of_the_border():
    for scene in SCENES:
        for idx, thing in enumerate(scene):
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            assert all(thing.radius < value < CANVAS - thing.radius for value in (thing.x, thing.y))
            for other in scene[:idx]:
                assert math.hypot(thing.x - other.x, thing.y - other.y) > thing.radius + other.radius


def test_there_are_scenes_of_every_number():
    assert {len(scene) for scene in SCENES} == set(range(1, MAX_THINGS + 1))


def test_letters_and_digits_say_something():
    kinds = {thing.kind: thing.glyph for scene in SCENES for thing in scene}
    assert kinds["letter"].isalpha()
    assert kinds["digit"].isdigit()
    assert kinds["circle"] == ""


@pytest.mark.parametrize(("x", "y", "place"), [(10, 10, "top left"), (84, 84, "center"), (160, 90, "right")])
def test_the_place_follows_from_the_centre(x: int, y: int, place: str):
    assert Thing("circle", "", "red", "small", x, y, 9).place == place
    assert place in PLACES


def test_scenes_are_those_of_their_seed():
    assert make_scene(np.random.default_rng(3)) == SCENES[3] != SCENES[4]
