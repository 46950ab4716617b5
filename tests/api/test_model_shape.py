from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from duet_server.api.model_shape import model_shape
from duet_server.plan import DecoderShape, ModelShape, VisionShape


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
