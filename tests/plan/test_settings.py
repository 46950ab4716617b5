from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import Budget, CompressionSettings, make_layout, make_plan, off_settings
from tests.plan.shapes import LLAVA_7B, llava, schedules

AGGRESSIVE = CompressionSettings(72, 30, 4, (0.5, 0.0), "salient", "aggressive")
STAGE2_ONLY = CompressionSettings(None, 0, None, (0.5, 0.0), "last", "custom")


def test_what_enters_the_language_model():
    assert AGGRESSIVE.num_entering(576) == 102
    assert STAGE2_ONLY.num_entering(576) == 576


def test_counts_of_every_segment():
    assert AGGRESSIVE.segment_counts(576) == (102, 51, 0)
    assert STAGE2_ONLY.segment_counts(576) == (576, 288, 0)
    assert off_settings(LLAVA_7B).segment_counts(576) == (576, 576, 576)


@pytest.mark.parametrize(
    ("settings", "drops", "is_off"),
    [
        (AGGRESSIVE, True, False),
        (STAGE2_ONLY, True, False),
        (CompressionSettings(72, 30, 4, (1.0, 1.0), "all", "custom"), False, False),
        (off_settings(LLAVA_7B), False, True),
    ],
    ids=["both stages", "stage 2", "stage 1", "off"],
)
def test_which_stages_are_on(settings, drops, is_off):
    assert (settings.drops, settings.is_off) == (drops, is_off)


@pytest.mark.parametrize(
    ("shape", "settings", "average"),
    [
        (llava(), CompressionSettings(300, 7, 4, (0.5, 0.0), "all", ""), 192),
        (llava(), CompressionSettings(170, 32, 4, (0.5, 0.0), "all", ""), 128),
        (llava(), CompressionSettings(72, 30, 4, (0.5, 0.0), "all", ""), 64),
        (llava(num_patches=8 * 256), CompressionSettings(8 * 160, 8 * 32, 4, (0.5, 0.0), "all", ""), 960),
        (llava((14, 21), num_layers=28), CompressionSettings(540, 100, 4, (0.5, 0.25), "all", ""), 440),
    ],
    ids=["LLaVA-1.5 192", "LLaVA-1.5 128", "LLaVA-1.5 64", "Video-LLaVA 960", "Qwen2.5-VL 440"],
)
def test_layer_averages_are_those_of_the_authors_table(shape, settings, average):
    """The table is rounded: 192, 128 and 64 are exactly 191.75, 126.25 and 63.75."""
    assert settings.layer_average(shape) == pytest.approx(average, abs=2)
    assert settings.layer_average(shape) <= average


def test_as_dict_is_json():
    as_read = json.loads(json.dumps(AGGRESSIVE.as_dict()))
    assert as_read == AGGRESSIVE.as_dict()
    assert as_read == {
        "dominant": 72,
        "contextual": 30,
        "cluster_width": 4,
        "keep": [0.5, 0.0],
        "guide": "salient",
        "preset": "aggressive",
    }


@given(st.integers(1, 576), st.integers(0, 4).flatmap(schedules))
def test_segment_counts_agree_with_the_plan_of_one_image(dominant, keep):
    settings = CompressionSettings(dominant, 0, None, keep, "last", "custom")
    counts = settings.segment_counts(576)
    plan = make_plan(make_layout(dominant + 9, [(5, 5 + dominant)]), keep, ())
    assert counts == tuple(segment.num_visual_tokens for segment in plan.segments)
    assert all(later <= earlier for earlier, later in pairwise(counts))


def test_a_budget_is_at_most_the_image():
    assert [Budget(64, is_share=False).of(num_tokens) for num_tokens in (1, 63, 64, 576)] == [1, 63, 64, 64]
    assert [Budget(0.25, is_share=True).of(num_tokens) for num_tokens in (1, 576)] == [0.25, 144]


@pytest.mark.parametrize(
    ("budget", "reported"),
    [
        (Budget(64, is_share=False), {"visual_tokens": 64}),
        (Budget(64.5, is_share=False), {"visual_tokens": 64.5}),
        (Budget(1 - 0.9, is_share=True), {"reduction": 0.9}),
    ],
)
def test_a_budget_is_reported_as_it_was_asked(budget, reported):
    settings = CompressionSettings(None, 0, 4, (0.5, 0.0), "salient", "custom", budget)
    assert settings.as_dict() == {
        "dominant": None,
        "contextual": 0,
        "cluster_width": 4,
        "keep": [0.5, 0.0],
        "guide": "salient",
        "preset": "custom",
        **reported,
    }
    assert json.loads(json.dumps(settings.as_dict())) == settings.as_dict()


def test_a_budget_may_cut_but_has_no_counts_of_its_own():
    settings = CompressionSettings(None, 0, 4, (), "salient", "custom", Budget(64, is_share=False))
    assert (settings.has_stage1, settings.drops, settings.is_off) == (True, False, False)
    with pytest.raises(AssertionError):
        settings.num_entering(576)


def test_shares_count_the_images_tokens():
    settings = CompressionSettings(0.125, 0.05, 4, (0.5, 0.0), "salient", "custom")
    assert settings.segment_counts(100) == (17, 8, 0)  # round(12.5) = 12, and 5
    mixed = CompressionSettings(0.125, 30, 4, (0.5, 0.0), "salient", "custom")
    assert mixed.num_entering(576) == 102


@pytest.mark.parametrize(
    ("settings", "preset"), [(AGGRESSIVE, "custom"), (STAGE2_ONLY, "off")], ids=["both stages", "stage 2"]
)
def test_without_stage_2_only_stage_1_is_left(settings, preset):
    less = settings.without_stage2()
    assert (less.keep, less.preset, less.drops) == ((1.0, 1.0), preset, False)
    assert less.num_entering(576) == settings.num_entering(576)
