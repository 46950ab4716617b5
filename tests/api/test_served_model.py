from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from duet_server.api.errors import RequestRefusedError
from duet_server.api.options import ServerOptions
from duet_server.api.served_model import ServedModel, model_shape
from duet_server.plan import DecoderShape, ModelShape, SettingsError, VisionShape, presets
from tests.plan.shapes import LLAVA_7B


def served(shape=LLAVA_7B, default="off", max_reduction=0.97):
    return ServedModel("m", shape, default, max_reduction, 2048, 2, None)


def test_settings_fall_back_to_the_default():
    assert served(default="light").resolve(None) == presets(LLAVA_7B)["light"]
    assert served(default="light").resolve("off").is_off


def test_refusals_carry_field_value_and_remedy():
    with pytest.raises(RequestRefusedError) as refused:
        served().resolve({"visual_tokens": 1000})
    assert (refused.value.reason, refused.value.parameter) == ("invalid_settings", "compression.visual_tokens")
    assert str(refused.value).startswith("compression.visual_tokens is 1000, expected a number from ")


def test_a_limit_hides_the_presets_beyond_it():
    assert list(served(max_reduction=0.7).describe()["presets"]) == ["off", "light"]


@pytest.mark.parametrize("name", ["off", "light", "aggressive"])
def test_described_presets_resolve(name):
    preset = served().describe()["presets"][name]
    assert served().resolve(name).segment_counts(576) == tuple(preset["segments"])


def test_a_model_without_compression_says_so():
    assert served(shape=None).describe() == {"model": "m", "supported": False}
    assert served(shape=None).resolve(None) is None
    with pytest.raises(RequestRefusedError) as refused:
        served(shape=None).resolve({"reduction": 0.5})
    assert refused.value.reason == "unsupported"


def test_a_default_is_refused_there_too():
    model_config = SimpleNamespace(served_model_name="m", hf_config=SimpleNamespace(), dtype=None)
    config = SimpleNamespace(
        model_config=model_config,
        additional_config={},
        cache_config=SimpleNamespace(cache_dtype="fp8"),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=1, max_num_scheduled_tokens=None),
    )
    assert ServedModel.from_config(config, ServerOptions.from_args(Namespace(duet_default="off"))).kv_dtype_bytes == 1
    with pytest.raises(SettingsError, match=r"^--duet-default is 'light', expected off"):
        ServedModel.from_config(config, ServerOptions.from_args(Namespace(duet_default="light")))


def config(duet, vision_feature_layer=-2, **text):
    text_config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32064,
        **text,
    )
    vision_config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    hf_config = LlavaConfig(
        text_config=text_config, vision_config=vision_config, vision_feature_layer=vision_feature_layer
    )
    model_config = SimpleNamespace(hf_config=hf_config, hf_text_config=text_config)
    return SimpleNamespace(model_config=model_config, additional_config={"duet": duet} if duet else {})


def test_llava_7b():
    assert model_shape(config({"served": True, "boundaries": [16, 24]})) == ModelShape(
        DecoderShape(32, 4096, 11008, 32, 32, 128, 32064),
        VisionShape(576, True, 23, 1024, 4096, 14, 336),
        (16, 24),
    )


def test_grouped_query_attention():
    shape = model_shape(config({"served": True, "boundaries": []}, num_key_value_heads=8, head_dim=64))
    assert (shape.decoder.num_kv_heads, shape.decoder.head_dim) == (8, 64)


@pytest.mark.parametrize(("layer", "num_layers"), [(-1, 24), (-2, 23), (22, 22)])
def test_the_tower_runs_up_to_the_selected_layer(layer, num_layers):
    assert (
        model_shape(config({"served": True, "boundaries": []}, vision_feature_layer=layer)).vision.num_layers
        == num_layers
    )


@pytest.mark.parametrize("duet", [None, {"other": 1}, {"boundaries": [16, 24]}])
def test_a_model_that_the_engine_does_not_compress(duet):
    assert model_shape(config(duet)) is None
