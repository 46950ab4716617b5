from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import CompressionSettings, SettingsError, off_settings, presets, resolve_settings
from tests.plan.shapes import LLAVA_7B, llava, shapes

OFF = off_settings(LLAVA_7B)
ALL_KEYS = "preset, reduction, visual_tokens, dominant, contextual, keep, cluster_width, guide"
FORMS = "exactly one of preset, reduction, visual_tokens or explicit counts (dominant and contextual, keep, or all)"


def test_a_request_that_says_nothing_gets_the_default():
    assert resolve_settings(None, LLAVA_7B) == OFF
    assert resolve_settings(None, LLAVA_7B, default="light") == presets(LLAVA_7B)["light"]
    assert resolve_settings(None, LLAVA_7B, default={"visual_tokens": 64}).dominant == 72
    assert resolve_settings("off", LLAVA_7B, default="light") == OFF


def test_explicit_counts():
    request = {"dominant": 72, "contextual": 30, "cluster_width": 8, "keep": [0.5, 0], "guide": "all"}
    assert resolve_settings(request, LLAVA_7B) == CompressionSettings(72, 30, 8, (0.5, 0.0), "all", "custom")


def test_counts_alone_leave_stage_2_off():
    expected = CompressionSettings(72, 30, 4, (1.0, 1.0), "salient", "custom")
    assert resolve_settings({"dominant": 72, "contextual": 30}, LLAVA_7B) == expected


def test_keep_alone_leaves_stage_1_off():
    expected = CompressionSettings(None, 0, None, (0.5, 0.25), "salient", "custom")
    assert resolve_settings({"keep": [0.5, 0.25]}, LLAVA_7B) == expected


def test_counts_that_come_to_nothing_are_off():
    assert resolve_settings({"keep": [1, 1.0], "guide": "last"}, LLAVA_7B) == OFF
    assert resolve_settings({"keep": []}, llava(boundaries=())) == off_settings(llava(boundaries=()))


@pytest.mark.parametrize(
    "request_", [{"visual_tokens": 64}, {"reduction": 0.889}, {"dominant": 72, "contextual": 30, "keep": [0.5, 0.0]}]
)
def test_guide_and_cluster_width_go_with_any_form(request_):
    resolved = resolve_settings({**request_, "guide": "last", "cluster_width": None}, LLAVA_7B)
    assert resolved == CompressionSettings(72, 30, None, (0.5, 0.0), "last", "custom")


@pytest.mark.parametrize("guide", ["all", "salient", "last"])
def test_text_is_an_accepted_name_of_guide(guide):
    for form in ({"preset": "light"}, {"keep": [0.5, 0.0]}, {"visual_tokens": 64}):
        expected = resolve_settings({**form, "guide": guide}, LLAVA_7B)
        assert resolve_settings({**form, "text": guide}, LLAVA_7B) == expected
        assert resolve_settings({**form, "text": guide, "guide": guide}, LLAVA_7B) == expected


def test_a_preset_that_is_changed_is_custom():
    changed = resolve_settings({"preset": "aggressive", "guide": "all"}, LLAVA_7B)
    assert changed == CompressionSettings(72, 30, 4, (0.5, 0.0), "all", "custom")
    unchanged = resolve_settings({"preset": "aggressive", "guide": "salient", "cluster_width": 4}, LLAVA_7B)
    assert unchanged == presets(LLAVA_7B)["aggressive"]
    assert resolve_settings({"preset": "off", "guide": "all", "cluster_width": 9}, LLAVA_7B) == OFF


def test_cluster_width_means_nothing_without_stage_1():
    shape = llava((2,))
    assert resolve_settings({"preset": "fastv", "cluster_width": 9}, shape) == presets(shape)["fastv"]


@pytest.mark.parametrize(
    ("request_", "field", "value", "expected"),
    [
        (3, "compression", 3, "a preset's name or an object"),
        (["light"], "compression", ["light"], "a preset's name or an object"),
        ({}, "compression", {}, FORMS),
        ({"guide": "last"}, "compression", {"guide": "last"}, FORMS),
        ({"reduction": 0.5, "visual_tokens": 64}, "compression", {"reduction": 0.5, "visual_tokens": 64}, FORMS),
        ({"preset": "off", "keep": [1, 1]}, "compression", {"preset": "off", "keep": [1, 1]}, FORMS),
        ({"ratio": 0.5}, "compression.ratio", 0.5, f"only the fields {ALL_KEYS}"),
        ({"reduction": 0.98}, "compression.reduction", 0.98, "a number from 0 to 0.97"),
        ({"reduction": -0.1}, "compression.reduction", -0.1, "a number from 0 to 0.97"),
        ({"reduction": "0.5"}, "compression.reduction", "0.5", "a number from 0 to 0.97"),
        ({"reduction": True}, "compression.reduction", True, "a number from 0 to 0.97"),
        ({"reduction": None}, "compression.reduction", None, "a number from 0 to 0.97"),
        ({"reduction": 10**400}, "compression.reduction", 10**400, "a number from 0 to 0.97"),
        (
            {"visual_tokens": 600},
            "compression.visual_tokens",
            600,
            "a number from 17.28 to 576, the layer average per image",
        ),
        (
            {"visual_tokens": 17},
            "compression.visual_tokens",
            17,
            "a number from 17.28 to 576, the layer average per image",
        ),
        (
            {"dominant": 600, "contextual": 2, "keep": [1, 1]},
            "compression.dominant",
            600,
            "a whole number from 1 to 575: the class token and 576 patches, less contextual",
        ),
        (
            {"dominant": 0, "contextual": 2},
            "compression.dominant",
            0,
            "a whole number from 1 to 575: the class token and 576 patches, less contextual",
        ),
        (
            {"contextual": 2},
            "compression.dominant",
            None,
            "a whole number from 1 to 575: the class token and 576 patches, less contextual",
        ),
        (
            {"dominant": 72},
            "compression.contextual",
            None,
            "a whole number from 0 to 576, together with dominant",
        ),
        (
            {"dominant": 72, "contextual": 30.0},
            "compression.contextual",
            30.0,
            "a whole number from 0 to 576, together with dominant",
        ),
        (
            {"dominant": 72, "contextual": -1},
            "compression.contextual",
            -1,
            "a whole number from 0 to 576, together with dominant",
        ),
        (
            {"preset": "light", "cluster_width": 0},
            "compression.cluster_width",
            0,
            "a whole number from 1 to 576, or null for clusters of any size",
        ),
        (
            {"preset": "light", "cluster_width": 2**63},
            "compression.cluster_width",
            2**63,
            "a whole number from 1 to 576, or null for clusters of any size",
        ),
        (
            {"preset": "light", "cluster_width": "4"},
            "compression.cluster_width",
            "4",
            "a whole number from 1 to 576, or null for clusters of any size",
        ),
        ({"preset": "light", "guide": "some"}, "compression.guide", "some", "one of all, salient, last"),
        ({"preset": "light", "guide": ["all"]}, "compression.guide", ["all"], "one of all, salient, last"),
        ({"preset": "light", "text": "some"}, "compression.text", "some", "one of all, salient, last"),
        (
            {"preset": "light", "text": "all", "guide": "last"},
            "compression.text",
            "all",
            "the same value as guide",
        ),
        ({"preset": 7}, "compression.preset", 7, "one of off, light, balanced, aggressive, visionzip"),
    ],
    ids=lambda part: repr(part) if isinstance(part, dict) else "",
)
def test_errors_name_field_value_and_what_works(request_, field, value, expected):
    with pytest.raises(SettingsError) as raised:
        resolve_settings(request_, LLAVA_7B)
    assert (raised.value.field, raised.value.value, raised.value.expected) == (field, value, expected)


@pytest.mark.parametrize(
    "keep",
    [[0.5], [0.5, 0.25, 0], [0.25, 0.5], [1.5, 0.5], [0.5, -0.1], [0.5, "0"], [True, False], "50", 0.5, None, {}],
    ids=repr,
)
def test_keeps_must_fall_one_for_each_boundary(keep):
    with pytest.raises(SettingsError) as raised:
        resolve_settings({"keep": keep}, LLAVA_7B)
    assert (raised.value.field, raised.value.value) == ("compression.keep", keep)
    assert raised.value.expected == "2 numbers from 0 to 1 that never rise, one for each boundary (16, 24)"


@pytest.mark.parametrize("keep", [[float("nan"), 0.0], [0.5, float("nan")]], ids=repr)
def test_keeps_are_numbers(keep):
    with pytest.raises(SettingsError, match=r"compression\.keep is \[.*NaN"):
        resolve_settings({"keep": keep}, LLAVA_7B)


@pytest.mark.parametrize(
    ("boundaries", "expected"),
    [
        ((), "an empty list, since this server has no boundaries"),
        ((16,), "1 number from 0 to 1 that never rise, one for each boundary (16)"),
    ],
)
def test_the_expected_keeps_are_the_servers(boundaries, expected):
    with pytest.raises(SettingsError) as raised:
        resolve_settings({"keep": [0.5, 0.25]}, llava(boundaries))
    assert raised.value.expected == expected


def test_without_cls_dominant_counts_patches():
    shape = llava(has_cls=False)
    settings = resolve_settings({"dominant": 546, "contextual": 30}, shape)
    assert (settings.dominant, settings.contextual) == (546, 30)
    with pytest.raises(SettingsError) as raised:
        resolve_settings({"dominant": 547, "contextual": 30}, shape)
    assert raised.value.expected == "a whole number from 1 to 546: 576 patches, less contextual"


@pytest.mark.parametrize(
    ("request_", "kept"),
    [("aggressive", "63.75"), ({"preset": "aggressive"}, "63.75"), ({"dominant": 9, "contextual": 1}, "10")],
    ids=repr,
)
def test_nothing_passes_the_servers_limit(request_, kept):
    with pytest.raises(SettingsError) as raised:
        resolve_settings(request_, LLAVA_7B, max_reduction=0.75)
    assert (raised.value.field, raised.value.value) == ("compression", request_)
    assert raised.value.expected == (
        "a layer average of at least 144 visual tokens per image, for a reduction of at most 0.75; "
        f"this request keeps {kept}"
    )


def test_the_limit_itself_is_served():
    assert resolve_settings({"reduction": 0.97}, LLAVA_7B).layer_average(LLAVA_7B) == 16.75
    assert resolve_settings({"visual_tokens": 17.28}, LLAVA_7B).layer_average(LLAVA_7B) == 16.75
    assert resolve_settings({"reduction": 0.0}, LLAVA_7B, max_reduction=0) == OFF
    exactly = 1 - 63.75 / 576
    assert resolve_settings("aggressive", LLAVA_7B, max_reduction=exactly).preset == "aggressive"


def test_the_limit_holds_for_the_default_too():
    with pytest.raises(SettingsError, match=r"reduction of at most 0\.5"):
        resolve_settings(None, LLAVA_7B, default="light", max_reduction=0.5)


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan"), "0.9", True], ids=repr)
def test_the_limit_is_a_share(limit):
    with pytest.raises(SettingsError, match=r"max_reduction is .*, expected a number from 0 to 1\."):
        resolve_settings("off", LLAVA_7B, max_reduction=limit)


@given(shapes(), st.floats(0, 1))
def test_the_bounds_an_error_names_are_accepted(shape, limit):
    with pytest.raises(SettingsError) as too_much:
        resolve_settings({"reduction": 2}, shape, max_reduction=limit)
    largest = float(too_much.value.expected.rsplit(" ", 1)[1])
    assert resolve_settings({"reduction": largest}, shape, max_reduction=limit).preset in ("custom", "off")
    with pytest.raises(SettingsError) as too_few:
        resolve_settings({"visual_tokens": 0}, shape, max_reduction=limit)
    smallest = float(too_few.value.expected.split(" ")[3])
    if smallest:
        assert resolve_settings({"visual_tokens": smallest}, shape, max_reduction=limit).preset in ("custom", "off")


def resolved_or_refused(request_, shape):
    try:
        return resolve_settings(request_, shape)
    except SettingsError as error:
        return error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(ALL_KEYS.split(", "))


@given(shapes(), json_values | st.dictionaries(keys, json_values | st.integers(0, 40) | st.floats(0, 1), max_size=4))
def test_whatever_json_is_sent_is_resolved_or_refused(shape, request_):
    outcome = resolved_or_refused(request_, shape)
    if isinstance(outcome, SettingsError):
        assert outcome.field.split(".")[0] == "compression"
        assert str(outcome).startswith(f"{outcome.field} is ")
        return
    counts = outcome.segment_counts(shape.vision.num_patches)
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] <= shape.vision.num_patches + 1
