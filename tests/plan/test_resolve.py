from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import (
    Budget,
    CompressionSettings,
    SettingsError,
    check_item,
    layer_average,
    off_settings,
    presets,
    resolve_settings,
)
from tests.plan.prompts import ANY_SIZE, any_size, variable_shapes, visual_item
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


# From here on, images differ in size.


def check_image(request_, grid, limit):
    """Resolve a request and check its image as the server does, after the image is known."""
    settings = resolve_settings(request_, ANY_SIZE, max_reduction=limit)
    image = visual_item(settings, ANY_SIZE, [grid])
    check_item(settings, request_, ANY_SIZE, (image.num_tokens, *image.segment_counts(settings, ANY_SIZE)), limit)
    return image


def test_a_budget_stays_one_until_the_image_is_known():
    expected = CompressionSettings(None, 0, 4, (0.5, 0.0), "salient", "custom", Budget(64, is_share=False))
    assert resolve_settings({"visual_tokens": 64}, ANY_SIZE) == expected
    reduced = resolve_settings({"reduction": 0.75, "guide": "last", "cluster_width": None}, ANY_SIZE)
    budget = Budget(0.25, is_share=True)
    assert reduced == CompressionSettings(None, 0, None, (0.5, 0.0), "last", "custom", budget)
    assert resolve_settings({"reduction": 0}, ANY_SIZE) == off_settings(ANY_SIZE)


def test_counts_and_shares_may_be_mixed():
    settings = resolve_settings({"dominant": 0.25, "contextual": 30, "cluster_width": 600}, ANY_SIZE)
    assert settings == CompressionSettings(0.25, 30, 600, (1.0, 1.0), "salient", "custom")
    assert visual_item(settings, ANY_SIZE, [(24, 24)]).units[0].counts == (144, 30, 600)


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"dominant": 1.5, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": 1.0, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": 0, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": True, "contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"contextual": 0}, "dominant", "a whole number from 1 on, or a share"),
        ({"dominant": 5}, "contextual", "a whole number from 0 on, or a share"),
        ({"dominant": 5, "contextual": -1}, "contextual", "a whole number from 0 on, or a share"),
        ({"dominant": 5, "contextual": 1.5}, "contextual", "a whole number from 0 on, or a share"),
        ({"dominant": 0.9, "contextual": 0.2}, "contextual", r"at most 0\.1, since dominant is 0\.9"),
        ({"visual_tokens": 0}, "visual_tokens", "a number above 0"),
        ({"visual_tokens": float("inf")}, "visual_tokens", "a number above 0"),
        ({"reduction": 1}, "reduction", r"a number from 0 to 0\.97"),
        ({"dominant": 5, "contextual": 0, "cluster_width": 65537}, "cluster_width", "a whole number from 1 to 65536"),
    ],
    ids=str,
)
def test_values_that_no_image_can_have(fields, field, expected):
    with pytest.raises(SettingsError, match=rf"^compression\.{field} is .*expected {expected}"):
        resolve_settings(fields, ANY_SIZE)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"reduction": 0.9}, r"compression\.reduction is 0\.9, expected a number from 0 to 0\.8"),
        ("aggressive", r"a layer average of at least .* this request keeps 63\.75"),
        ({"dominant": 0.1, "contextual": 0.05}, "a layer average of at least"),
    ],
    ids=repr,
)
def test_the_limit_holds_for_shares_before_the_image_is_known(request_, message):
    with pytest.raises(SettingsError, match=message):
        resolve_settings(request_, ANY_SIZE, max_reduction=0.8)


@pytest.mark.parametrize(
    ("request_", "smaller", "larger", "kept"),
    [
        ({"dominant": 5, "contextual": 0}, (1, 166), (1, 167), "5"),
        ({"dominant": 4, "contextual": 1}, (1, 166), (1, 167), "5"),
        ({"dominant": 10, "contextual": 0, "keep": [0.5, 0]}, (1, 208), (1, 209), "6.25"),
        ({"dominant": 5, "contextual": 0.02}, (20, 20), (40, 40), "37"),
        ({"dominant": 0.02, "contextual": 18}, (20, 20), (50, 50), "68"),
        ({"dominant": 0.001, "contextual": 18}, (20, 20), (40, 40), "20"),
        ({"visual_tokens": 5}, (1, 100), (1, 200), 5),
        ({"visual_tokens": 431}, (1, 14366), (1, 14400), 431),
    ],
    ids=repr,
)
def test_the_limit_holds_for_counts_when_the_image_is_known(request_, smaller, larger, kept):
    check_image(request_, smaller, 0.97)
    smallest = f"{larger[0] * larger[1] * 0.03:.10g}"
    with pytest.raises(SettingsError) as raised:
        check_image(request_, larger, 0.97)
    assert (raised.value.field, raised.value.value) == ("compression", request_)
    verb = "keeps" if isinstance(kept, str) else "asks for"
    assert raised.value.expected == (
        f"a layer average of at least {smallest} visual tokens per image, for a reduction of at most 0.97; "
        f"this request {verb} {kept}"
    )


@given(st.integers(1, 2000), st.floats(0, 0.99))
def test_the_smallest_budget_that_the_limit_allows_is_served(num_tokens, limit):
    """The counts are a little below the budget, as everywhere; the budget itself is what the limit is for."""
    request_ = {"visual_tokens": (1 - limit) * num_tokens}
    check_image(request_, (1, num_tokens), limit)
    if request_["visual_tokens"] >= 0.5:
        assert resolve_settings(request_, llava(num_patches=num_tokens), max_reduction=limit)


def test_the_limit_is_checked_once():
    """Shares were checked before the image was known, and so was everything where all images have one size."""
    share = resolve_settings({"reduction": 0.9}, ANY_SIZE)
    check_item(share, "asked", ANY_SIZE, (100, 0, 0, 0), 0.9)
    check_item(resolve_settings("aggressive", ANY_SIZE), "asked", ANY_SIZE, (100, 0, 0, 0), 0.9)
    check_item(resolve_settings("aggressive", LLAVA_7B), "asked", LLAVA_7B, (576, 0, 0, 0), 0.9)


@given(
    variable_shapes(),
    json_values | st.dictionaries(keys, json_values | st.integers(0, 40) | st.floats(0, 1), max_size=4),
    st.integers(1, 30),
)
def test_whatever_json_is_sent_is_resolved_or_refused_for_any_size(shape, request_, side):
    outcome = resolved_or_refused(request_, shape)
    if isinstance(outcome, SettingsError):
        assert outcome.field.split(".")[0] == "compression"
        return
    assert json.loads(json.dumps(outcome.as_dict())) == outcome.as_dict()
    image = visual_item(outcome, shape, [(side, side)])
    counts = image.segment_counts(outcome, shape)
    assert list(counts) == sorted(counts, reverse=True)
    assert 1 <= counts[0] <= side * side + shape.vision.has_cls
    assert layer_average(counts, shape.segment_layers) <= counts[0]


@given(shapes(), st.integers(0, 60), st.integers(0, 60))
def test_counts_of_an_image_do_not_depend_on_whether_others_differ(shape, dominant, contextual):
    request_ = {"dominant": dominant, "contextual": contextual}
    fixed = resolved_or_refused(request_, shape)
    if not isinstance(fixed, SettingsError):
        settings = resolve_settings(request_, any_size(shape))
        image = visual_item(settings, any_size(shape), [(1, shape.num_patches)])
        assert image.units[0].counts == (fixed.dominant, fixed.contextual, fixed.cluster_width)
