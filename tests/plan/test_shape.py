from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import (
    DecoderShape,
    ModelShape,
    SettingsError,
    VisionShape,
    check_boundaries,
    default_boundaries,
)
from tests.plan.prompts import any_size
from tests.plan.shapes import LLAVA_7B, llava, shapes


@pytest.mark.parametrize(
    ("num_layers", "boundaries"),
    [
        (32, (16, 24)),
        (40, (20, 30)),
        (28, (14, 21)),
        (8, (4, 6)),
        (4, (2, 3)),
        (3, (2,)),
        (2, (1,)),
        (1, ()),
    ],
)
def test_default_boundaries_scale_by_depth(num_layers, boundaries):
    assert default_boundaries(num_layers) == boundaries


@given(st.integers(1, 500))
def test_default_boundaries_fit_every_depth(num_layers):
    boundaries = default_boundaries(num_layers)
    assert check_boundaries(boundaries, num_layers) == boundaries


def test_segment_layers_are_the_layers_between_boundaries():
    assert LLAVA_7B.segment_layers == (16, 8, 8)
    assert llava(boundaries=()).segment_layers == (32,)
    assert llava(boundaries=(2,)).segment_layers == (2, 30)


@given(shapes())
def test_segments_cover_every_layer(shape):
    assert len(shape.segment_layers) == len(shape.boundaries) + 1
    assert sum(shape.segment_layers) == shape.decoder.num_layers
    assert min(shape.segment_layers) > 0


@given(shapes())
def test_a_shape_passes_through_json(shape):
    for model in (shape, any_size(shape)):
        assert ModelShape.from_dict(json.loads(json.dumps(asdict(model)))) == model
        assert ModelShape.from_dict(asdict(model)) == model
    vision = replace(shape.vision, projector=((24, 24), (24, 8)), num_global_layers=2)
    assert VisionShape.from_dict(json.loads(json.dumps(asdict(vision)))) == vision


TEXT_CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 99,
    "num_attention_heads": 4,
    "vocab_size": 5,
}


@pytest.mark.parametrize(
    ("more", "shape"),
    [
        ({}, DecoderShape(2, 8, 99, 4, 4, 2, 5)),
        ({"num_key_value_heads": 2, "head_dim": 7}, DecoderShape(2, 8, 99, 4, 2, 7, 5)),
        ({"num_key_value_heads": None, "head_dim": None}, DecoderShape(2, 8, 99, 4, 4, 2, 5)),
        ({"num_experts_per_tok": 2, "moe_intermediate_size": 6}, DecoderShape(2, 8, 12, 4, 4, 2, 5)),
        ({"num_experts_per_tok": 2}, DecoderShape(2, 8, 198, 4, 4, 2, 5)),
        ({"num_experts_per_tok": None}, DecoderShape(2, 8, 99, 4, 4, 2, 5)),
    ],
    ids=["plain", "grouped heads", "heads that are null", "experts", "Mixtral's experts", "no experts"],
)
def test_sizes_of_a_text_configuration(more, shape):
    assert DecoderShape.of(SimpleNamespace(**TEXT_CONFIG, **more)) == shape


def test_a_model_of_any_size_as_one_image_sees_it():
    shape = any_size(LLAVA_7B)
    assert shape.at(144).num_patches == 144
    assert shape.at(144) == replace(shape, vision=replace(shape.vision, num_patches=144))
    assert LLAVA_7B.num_patches == 576
    with pytest.raises(AssertionError, match="images differ"):
        _ = shape.num_patches


@given(st.integers(1, 100), st.integers(1, 110))
def test_boundaries_from_the_first_on(num_layers, first):
    boundaries = default_boundaries(num_layers, first)
    assert boundaries == tuple(edge for edge in default_boundaries(num_layers) if edge >= first)
    assert check_boundaries(boundaries, num_layers, first) == boundaries
    with pytest.raises(SettingsError, match=f"expected ascending decoder layer indices from {first} to"):
        check_boundaries([first - 1], num_layers, first)


def test_no_boundary_before_the_first_that_is_possible():
    assert default_boundaries(8, first=5) == (6,)
    assert check_boundaries([3, 4], 8, first=3) == (3, 4)
    with pytest.raises(
        SettingsError, match=r"boundaries is \[2, 4\], expected ascending decoder layer indices from 3 to 7"
    ):
        check_boundaries([2, 4], 8, first=3)


def test_check_boundaries_returns_a_tuple():
    assert check_boundaries([16, 24], 32) == (16, 24)
    assert check_boundaries([], 32) == ()


@pytest.mark.parametrize(
    "boundaries",
    [(24, 16), (16, 16), (0, 16), (16, 32), (-1,), (16.0, 24), (True, 4), ("16",), "16,24", "", 16, None],
    ids=repr,
)
def test_refuses_boundaries_that_are_no_ascending_layers(boundaries):
    with pytest.raises(SettingsError) as raised:
        check_boundaries(boundaries, 32)
    assert (raised.value.field, raised.value.value) == ("boundaries", boundaries)
    assert raised.value.expected == "ascending decoder layer indices from 1 to 31, such as 16,24"


def test_a_model_shape_cannot_hold_wrong_boundaries():
    with pytest.raises(SettingsError, match=r"boundaries is \(16, 40\), expected ascending"):
        llava(boundaries=(16, 40))
