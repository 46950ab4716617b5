from __future__ import annotations

import pytest

from benchmarks.accuracy.methods import METHODS, boundaries_for, described_shape, settings_for
from benchmarks.accuracy.selection import OWN, RANDOM_KEEP, UNIFORM_POOLING
from duet_server.plan import resolve_settings
from tests.plan.shapes import llava

SHARES = (0.33, 0.22, 0.11, 0.07)
DEMO = llava((2, 4, 6), num_layers=8, num_patches=144)
LLAVA = llava((2, 8, 16, 24))
BY_NAME = {method.name: method for method in METHODS}


def averages(shape, max_reduction=0.97):
    """Planned layer averages by method and share, and what was left out."""
    settings, left_out = settings_for(METHODS, SHARES, shape, max_reduction)
    plans = {(s.method, s.share): resolve_settings(s.compression, shape).layer_average(shape) for s in settings}
    return plans, left_out


def fields(name, share, shape=LLAVA):
    return BY_NAME[name].fields_for(share * shape.vision.num_patches, shape)


@pytest.mark.parametrize("shape", [DEMO, LLAVA, llava((8, 16, 24))], ids=["demo", "llava", "llava without 2"])
def test_no_method_exceeds_its_budget_and_none_but_pooling_misses_it_by_a_token(shape):
    num_patches = shape.vision.num_patches
    plans, _ = averages(shape)
    for (method, share), average in plans.items():
        slack = 0.1 * share * num_patches if method == "uniform pooling" else 1.0
        assert share * num_patches - slack - 1 < average <= share * num_patches, f"{method=} {share=} {average=}"


def test_settings_that_the_demo_cannot_serve_are_listed():
    plans, left_out = averages(DEMO)
    assert len(plans) == 9 * 4 - 6
    assert [line.partition(":")[0] for line in left_out] == [
        f"{method} at {share}" for method in ("PyramidDrop", "FastV") for share in ("22%", "11%", "7%")
    ]
    assert left_out[0] == (
        "PyramidDrop at 22%: budget is 31.68, expected at least 36, "
        "because the layers before its first boundary hold every token."
    )


def test_on_llava_fastv_meets_every_budget_and_pyramiddrop_one():
    plans, left_out = averages(LLAVA)
    assert plans["FastV", 0.07] == pytest.approx(40.32, abs=1)
    assert [share for method, share in plans if method == "PyramidDrop"] == [0.33]
    assert len(left_out) == 3


def test_boundaries_that_a_method_needs_are_named():
    plans, left_out = averages(llava((16, 24)))
    assert ("DUET, all", 0.07) in plans
    assert "FastV at 33%: boundaries is (16, 24), expected a list that contains 2." in left_out
    assert "PyramidDrop at 7%: boundaries is (16, 24), expected a list that contains 8, 16, 24." in left_out


def test_the_servers_limit_is_applied():
    assert not [key for key in averages(DEMO, max_reduction=0.9)[0] if key[1] == 0.07]


def test_duet_drops_at_half_and_three_quarters_whatever_the_other_boundaries():
    for shape in (DEMO, LLAVA):
        settings = resolve_settings(fields("DUET, last", 0.11, shape), shape)
        assert settings.guide == "last"
        assert settings.keep[-3:] == (1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DUET, salient", {"visual_tokens": pytest.approx(63.36), "guide": "salient"}),
        ("DUET's stage 1", {"dominant": 44, "contextual": 19, "cluster_width": 4}),
        ("VisionZip", {"dominant": 53, "contextual": 10, "cluster_width": None}),
        ("random keep", {"dominant": 63, "contextual": 0}),
        ("uniform pooling", {"dominant": 63, "contextual": 0}),
    ],
)
def test_fields_at_11_percent_of_576(name, expected):
    assert fields(name, 0.11) == expected


def test_stage_2_alone_keeps_what_the_budget_leaves():
    pyramid, fastv = fields("PyramidDrop", 0.33), fields("FastV", 0.33)
    first, ratio, *more = pyramid["keep"]
    assert (first, more) == (1.0, [ratio**2, ratio**3])
    assert fastv == {"keep": [pytest.approx(0.2853, abs=0.002)] * 4, "guide": "last"}


def test_only_the_baselines_replace_the_selection():
    assert [m.name for m in METHODS if m.selection != OWN] == ["random keep", "uniform pooling"]
    assert (BY_NAME["random keep"].selection, BY_NAME["uniform pooling"].selection) == (RANDOM_KEEP, UNIFORM_POOLING)


def test_a_server_describes_its_shape():
    described = {"num_layers": 8, "visual_tokens_per_image": 144, "boundaries": [2, 4, 6]}
    assert described_shape(described).segment_layers == (2, 2, 2, 2)
    assert described_shape(described).vision.num_patches == 144


@pytest.mark.parametrize(("num_layers", "boundaries"), [(8, [2, 4, 6]), (32, [2, 8, 16, 24]), (2, [1])])
def test_boundaries_at_which_every_method_can_drop(num_layers, boundaries):
    assert boundaries_for(num_layers) == boundaries
