from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from duet_server.api.inspection.patches import NOTHING, Picture, covered_area, describe_patches
from duet_server.plan import ModelShape, Unit
from tests.plan.shapes import LLAVA_7B

CLIP = SimpleNamespace(do_center_crop=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
STRETCHING = SimpleNamespace(do_center_crop=False, size={"height": 336, "width": 336}, crop_size=None)
CUT = Unit(2, 2, 3, 1, 4)
PADDING = SimpleNamespace(do_center_crop=True, size={"shortest_edge": 168}, crop_size={"height": 336, "width": 336})


@pytest.mark.parametrize(
    ("size", "processor", "area"),
    [
        ((336, 336), CLIP, (0, 0, 336, 336)),
        ((800, 500), CLIP, (150, 0, 500, 500)),
        ((100, 1000), CLIP, (0, 450, 100, 100)),
        ((800, 500), STRETCHING, (0, 0, 800, 500)),
        ((100, 100), PADDING, (-50, -50, 200, 200)),
    ],
    ids=str,
)
def test_patches_cover_the_area_that_the_processor_keeps(size, processor, area):
    assert covered_area(*size, processor) == dict(zip(("left", "top", "width", "height"), area, strict=True))


@pytest.fixture
def shape() -> ModelShape:
    """4 patches per picture."""
    vision = replace(LLAVA_7B.vision, num_patches=4, image_size=28, patch_size=14)
    return replace(LLAVA_7B, vision=vision)


def test_rows_of_segments_are_described_as_patches(shape):
    """Prompt: text, 4 rows of the first picture (CLS, patches 1 and 3, one merged), text, the second one, text."""
    first, second = (Picture(idx, span, 10, 20, (CUT,), [None]) for idx, span in enumerate([(2, 6), (7, 11)]))
    stage1 = {"dominant": [1, 3], "contextual": [[2, 0]], "scores": [0.1, 0.4, 0.2, 0.3], "in_place": False}
    trace = {
        "images": {0: [stage1], 1: [stage1 | {"dominant": [0, 1], "contextual": [[3, 2]]}]},
        "segments": {
            1: {
                "rows": [0, 1, 2, 5, 6, 8, 9, 11, 12],
                "scores": [(2, [5.0, 1.0, 2.0, 6.0]), (7, [1.0, 9.0, 8.0, 3.0])],
            },
            2: {"rows": [0, 1, 6, 9, 11, 12], "scores": [(5, [3.0, 4.0])]},
        },
    }
    one, two = describe_patches([first, second], trace, 13, shape, CLIP)
    assert one["stage1"] == {
        "dominant": [1, 3],
        "contextual": [{"anchor": 2, "patches": [0, 2]}],
        "scores": stage1["scores"],
    }
    assert one["segments"] == [
        {"layers": [0, 16], "cls": True, "patches": [1, 3], "contextual": [0], "scores": None},
        {"layers": [16, 24], "cls": True, "patches": [], "contextual": [0], "scores": [5.0, 1.0, 2.0, 6.0]},
        {"layers": [24, 32], "cls": False, "patches": [], "contextual": [], "scores": None},
    ]
    assert [segment["patches"] for segment in two["segments"]] == [[0, 1], [0, 1], [1]]
    assert [segment["scores"] for segment in two["segments"]] == [None, [1.0, 9.0, 8.0, 3.0], [3.0, 4.0]]


def test_a_segment_without_a_drop_before_it_holds_what_the_previous_one_holds(shape):
    picture = Picture(0, (1, 5), 10, 20, (Unit(2, 2),), [None])
    trace = {"images": {}, "segments": {2: {"rows": [0, 3, 5], "scores": [(1, [0.0, 0.1, 0.9, 0.2])]}}}
    (described,) = describe_patches([picture], trace, 6, shape, CLIP)
    assert [segment["patches"] for segment in described["segments"]] == [[0, 1, 2, 3], [0, 1, 2, 3], [2]]
    assert [segment["scores"] for segment in described["segments"]] == [None, None, [0.0, 0.1, 0.9, 0.2]]


def test_without_compression_everything_is_held(shape):
    (described,) = describe_patches([Picture(0, (1, 5), 10, 20, (Unit(2, 2),), [None])], NOTHING, 6, shape, CLIP)
    assert described["grid"] == [2, 2]
    assert described["stage1"] is None
    assert all(segment["patches"] == [0, 1, 2, 3] and not segment["cls"] for segment in described["segments"])


def test_rows_that_stand_in_place(shape):
    """Without CLS: a grid of 2 x 3, patches 1 and 4 unchanged, patch 2 merged with 3; then one row is dropped."""
    shape = replace(shape, vision=replace(shape.vision, num_patches=None, has_cls=False))
    stage1 = {"dominant": [1, 4], "contextual": [[2, 3]], "scores": [0.1] * 6, "in_place": True}
    segments = {1: {"rows": [0, 2, 3, 4], "scores": [(1, [0.2, 0.3, 0.4])]}}
    picture = Picture(0, (1, 4), 30, 20, (Unit(2, 3, 2, 1, 4),), [None])
    (described,) = describe_patches([picture], {"images": {0: [stage1]}, "segments": segments}, 5, shape, STRETCHING)
    assert described["grid"] == [2, 3]
    assert described["area"] == {"left": 0, "top": 0, "width": 30, "height": 20}
    first, second, third = described["segments"]
    assert (first["patches"], first["contextual"], first["cls"]) == ([1, 4], [0], False)
    assert (second["patches"], second["contextual"], second["scores"]) == ([4], [0], [0.2, 0.4, 0.3])
    assert third == second | {"layers": [24, 32], "scores": None}
