from __future__ import annotations

import json

import pytest

from duet_server.plan import (
    VisualItem,
    VisualRows,
    compression_usage,
    cut_units,
    guiding_rows,
    make_layout,
    make_plan,
    off_settings,
    plan_prompt,
    presets,
    resolve_settings,
)
from duet_server.plan.wire import stage1_rule
from tests.plan.prompts import ANY_SIZE, visual_item
from tests.plan.shapes import LLAVA_7B, llava


def usage(request, text_lengths, num_images=1, shape=LLAVA_7B):
    """Usage of a prompt with one image between every two texts."""
    settings = resolve_settings(request, shape)
    entering = settings.num_entering(shape.num_patches)
    cut = tuple(cut_units(stage1_rule(settings, shape), [(1, shape.num_patches)], has_cls=True))
    starts = [sum(text_lengths[: idx + 1]) + idx * entering for idx in range(num_images)]
    num_tokens = sum(text_lengths) + num_images * entering
    layout = make_layout(num_tokens, [(start, start + entering) for start in starts])
    plan = make_plan(layout, settings.keep, guiding_rows(layout, "last"))
    items = [VisualItem("image", (start, start + entering), shape.num_patches, cut) for start in starts]
    return compression_usage(settings, shape, items, plan)


def test_one_image_and_34_text_tokens_under_aggressive():
    """576 + 34 tokens in 32 layers are 19520 token-layers; 136, 85 and 34 tokens in 16, 8 and 8 layers are 3128."""
    assert usage("aggressive", [5, 29]) == {
        "visual_tokens": {"encoder": 576, "stage1": 102, "segments": [102, 51, 0], "layer_average": 63.75},
        "by_modality": {"image": {"items": 1, "encoder": 576, "stage1": 102, "layer_average": 63.75}},
        "reduction": 0.8893,
        "kv_cache": {"token_layers": 3128, "token_layers_uncompressed": 19520},
        "settings": {
            "dominant": 72,
            "contextual": 30,
            "cluster_width": 4,
            "keep": [0.5, 0.0],
            "guide": "salient",
            "preset": "aggressive",
        },
    }


def test_off_costs_what_it_costs():
    assert usage("off", [5, 29]) == {
        "visual_tokens": {"encoder": 576, "stage1": 576, "segments": [576, 576, 576], "layer_average": 576.0},
        "by_modality": {"image": {"items": 1, "encoder": 576, "stage1": 576, "layer_average": 576.0}},
        "reduction": 0.0,
        "kv_cache": {"token_layers": 19520, "token_layers_uncompressed": 19520},
        "settings": off_settings(LLAVA_7B).as_dict(),
    }


def test_counts_are_totals_over_images():
    counted = usage("aggressive", [5, 8, 29], num_images=2)
    assert counted["visual_tokens"] == {
        "encoder": 1152,
        "stage1": 204,
        "segments": [204, 102, 0],
        "layer_average": 127.5,
    }
    assert counted["by_modality"] == {"image": {"items": 2, "encoder": 1152, "stage1": 204, "layer_average": 127.5}}
    assert counted["reduction"] == 0.8893
    assert counted["kv_cache"]["token_layers_uncompressed"] == 32 * (1152 + 42)


def test_images_side_by_side_are_counted_as_one_pool():
    """One pool keeps floor(614 / 2) tokens, one more than two pools, which keep floor(307 / 2) each."""
    assert usage("light", [5, 0, 29], num_images=2)["visual_tokens"]["segments"] == [614, 307, 0]
    assert usage("light", [5, 8, 29], num_images=2)["visual_tokens"]["segments"] == [614, 306, 0]


def test_text_alone_is_not_reduced():
    counted = usage("aggressive", [40], num_images=0)
    assert counted["visual_tokens"] == {"encoder": 0, "stage1": 0, "segments": [0, 0, 0], "layer_average": 0.0}
    assert counted["by_modality"] == {}
    assert counted["reduction"] == 0.0
    assert counted["kv_cache"] == {"token_layers": 1280, "token_layers_uncompressed": 1280}


@pytest.mark.parametrize("name", presets(llava((2, 8, 16, 24))))
def test_usage_is_json(name):
    counted = usage(name, [5, 29], shape=llava((2, 8, 16, 24)))
    assert json.loads(json.dumps(counted)) == counted
    assert len(counted["visual_tokens"]["segments"]) == 5


def test_images_of_two_sizes_under_one_budget():
    """102, 51 and 0 rows of the image of 24 x 24 beside 64 rows of the one of 8 x 8, and 20 rows of text."""
    settings = resolve_settings({"visual_tokens": 64}, ANY_SIZE)
    large = visual_item(settings, ANY_SIZE, [(24, 24)], start=5)
    small = visual_item(settings, ANY_SIZE, [(8, 8)], start=110)
    visual = VisualRows([large.span, small.span], [])
    plan = plan_prompt(settings, ANY_SIZE, 186, visual, [large, small])
    counted = compression_usage(settings, ANY_SIZE, [large, small], plan, ["a note"])
    assert counted == {
        "visual_tokens": {"encoder": 640, "stage1": 166, "segments": [166, 115, 64], "layer_average": 127.75},
        "by_modality": {"image": {"items": 2, "encoder": 640, "stage1": 166, "layer_average": 127.75}},
        "reduction": 0.8004,
        "kv_cache": {
            "token_layers": 16 * 186 + 8 * 135 + 8 * 84,
            "token_layers_uncompressed": 32 * 660,
        },
        "settings": settings.as_dict(),
        "notes": ["a note"],
    }
    assert json.loads(json.dumps(counted)) == counted


def test_structure_is_counted_as_text():
    settings = resolve_settings({"keep": [0.5, 0]}, ANY_SIZE)
    video = VisualItem("video", (1, 11), 8, ())
    plan = plan_prompt(settings, ANY_SIZE, 14, VisualRows([(1, 11)], [5, 6]), [video])
    counted = compression_usage(settings, ANY_SIZE, [video], plan)
    assert counted["visual_tokens"] == {"encoder": 8, "stage1": 8, "segments": [8, 4, 0], "layer_average": 5.0}
    assert counted["kv_cache"] == {"token_layers": 16 * 14 + 8 * 10 + 8 * 6, "token_layers_uncompressed": 32 * 14}
    assert "notes" not in counted


def test_images_and_videos_are_counted_apart():
    """A pool of an image and a video beside it, 6 and 2 tokens, and a pool of another image: they keep 4 and 1."""
    settings = resolve_settings({"keep": [0.5, 0.5]}, ANY_SIZE)
    items = [
        VisualItem("image", (1, 7), 6, ()),
        VisualItem("video", (7, 9), 2, ()),
        VisualItem("image", (10, 13), 3, ()),
    ]
    plan = plan_prompt(settings, ANY_SIZE, 15, VisualRows([item.span for item in items], []), items)
    assert compression_usage(settings, ANY_SIZE, items, plan)["by_modality"] == {
        "image": {"items": 2, "encoder": 9, "stage1": 9, "layer_average": 6 - 1.5 + 3 - 1},
        "video": {"items": 1, "encoder": 2, "stage1": 2, "layer_average": 2 - 0.5},
    }
