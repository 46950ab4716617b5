from __future__ import annotations

import pytest
from hypothesis import given

from duet_server.plan import CompressionSettings, SettingsError, default_keep, duet_keep, presets, resolve_settings
from tests.plan.shapes import LLAVA_7B, llava, shapes


@pytest.mark.parametrize(
    ("name", "counts", "average", "reduction"),
    [("light", (300, 7), 192, 0.667), ("balanced", (170, 32), 128, 0.778), ("aggressive", (72, 30), 64, 0.889)],
)
def test_duet_presets_are_the_authors_settings(name, counts, average, reduction):
    settings = presets(LLAVA_7B)[name]
    assert settings == CompressionSettings(*counts, 4, (0.5, 0.0), "salient", name)
    assert settings.layer_average(LLAVA_7B) == pytest.approx(average, abs=2)
    assert 1 - settings.layer_average(LLAVA_7B) / 576 == pytest.approx(reduction, abs=0.004)


def test_light_and_aggressive_are_within_a_token_of_their_names():
    averages = {name: settings.layer_average(LLAVA_7B) for name, settings in presets(LLAVA_7B).items()}
    assert (averages["light"], averages["balanced"], averages["aggressive"]) == (191.75, 126.25, 63.75)
    assert averages["off"] == 576


def test_visionzip_is_stage_1_only_and_meets_64_tokens():
    settings = presets(LLAVA_7B)["visionzip"]
    assert settings == CompressionSettings(54, 10, None, (1.0, 1.0), "salient", "visionzip")
    assert settings.layer_average(LLAVA_7B) == 64


def test_pyramiddrop_needs_its_own_boundaries():
    settings = presets(llava((8, 16, 24)))["pyramiddrop"]
    assert settings == CompressionSettings(None, 0, None, (0.5, 0.25, 0.125), "last", "pyramiddrop")
    assert settings.segment_counts(576) == (576, 288, 144, 72)


def test_pyramiddrop_scales_by_depth():
    assert presets(llava((10, 20, 30), num_layers=40))["pyramiddrop"].keep == (0.5, 0.25, 0.125)


def test_fastv_drops_once_at_layer_2():
    settings = presets(llava((2,)))["fastv"]
    assert settings == CompressionSettings(None, 0, None, (0.5,), "last", "fastv")


def test_methods_are_step_functions_of_depth():
    served = presets(llava((2, 8, 16, 24)))
    assert served["fastv"].keep == (0.5, 0.5, 0.5, 0.5)
    assert served["pyramiddrop"].keep == (1.0, 0.5, 0.25, 0.125)
    assert served["light"].keep == (1.0, 1.0, 0.5, 0.0)
    assert served["visionzip"].keep == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("boundaries", "names"),
    [
        ((), {"off", "light", "balanced", "aggressive", "visionzip"}),
        ((16, 24), {"off", "light", "balanced", "aggressive", "visionzip"}),
        ((2,), {"off", "light", "balanced", "aggressive", "visionzip", "fastv"}),
        ((8, 16, 24), {"off", "light", "balanced", "aggressive", "visionzip", "pyramiddrop"}),
    ],
)
def test_presets_are_those_that_the_boundaries_serve(boundaries, names):
    assert set(presets(llava(boundaries))) == names


def test_where_images_differ_in_size_presets_are_shares():
    shape = llava(num_patches=None)
    assert set(presets(shape)) == set(presets(LLAVA_7B))
    settings = presets(shape)["aggressive"]
    assert (settings.dominant, settings.contextual) == (72 / 576, 30 / 576)
    assert settings.num_entering(576) == 102
    assert presets(llava(has_cls=False))["aggressive"].num_entering(576) == 102


@pytest.mark.parametrize(
    ("boundaries", "keep"),
    [
        ((), ()),
        ((16, 24), (0.5, 0.0)),
        ((8, 16, 24), (1.0, 0.5, 0.0)),
        ((16, 20, 24, 28), (0.5, 0.5, 0.0, 0.0)),
        ((12,), (0.5,)),
        ((10, 20), (0.5, 0.0)),
        ((4, 8, 12), (0.5, 0.25, 0.125)),
    ],
)
def test_duet_keep_follows_depth_or_the_number_of_boundaries(boundaries, keep):
    assert duet_keep(llava(boundaries)) == keep


def test_default_keep():
    assert [default_keep(n) for n in range(4)] == [(), (0.5,), (0.5, 0.0), (0.5, 0.25, 0.125)]


@pytest.mark.parametrize(
    ("num_patches", "light", "aggressive"), [(144, (75, 2), (18, 8)), (256, (133, 3), (32, 13)), (1, (1, 0), (1, 0))]
)
def test_counts_scale_to_the_models_own_image(num_patches, light, aggressive):
    served = presets(llava(num_patches=num_patches))
    assert (served["light"].dominant, served["light"].contextual) == light
    assert (served["aggressive"].dominant, served["aggressive"].contextual) == aggressive


@given(shapes())
def test_every_preset_can_be_asked_for_as_its_own_counts(shape):
    for name, settings in presets(shape).items():
        assert resolve_settings(name, shape, max_reduction=1.0) == settings
        assert resolve_settings({"preset": name}, shape, max_reduction=1.0) == settings
        if settings.dominant is not None:
            counts = {key: value for key, value in settings.as_dict().items() if key != "preset"}
            as_counts = resolve_settings(counts, shape, max_reduction=1.0)
            assert as_counts.as_dict() == {**settings.as_dict(), "preset": "custom"}


def test_an_unknown_preset_lists_what_there_is():
    with pytest.raises(SettingsError) as raised:
        resolve_settings("max", LLAVA_7B)
    assert str(raised.value) == ("compression is 'max', expected one of off, light, balanced, aggressive, visionzip.")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("fastv", "(fastv needs the server's boundaries to include 2)"),
        ("pyramiddrop", "(pyramiddrop needs the server's boundaries to include 8, 16, 24)"),
    ],
)
def test_an_unavailable_preset_names_the_boundaries_it_needs(name, needs):
    with pytest.raises(SettingsError) as raised:
        resolve_settings({"preset": name}, LLAVA_7B)
    assert (raised.value.field, raised.value.value) == ("compression.preset", name)
    assert raised.value.expected == f"one of off, light, balanced, aggressive, visionzip {needs}"
