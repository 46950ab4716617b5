"""The shape that is read from a Hugging Face configuration."""

from __future__ import annotations

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from duet_server.plan import llava_shape
from tests.plan.shapes import LLAVA_7B


def config(vision_feature_layer=-2, **text):
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
    return LlavaConfig(text_config=text_config, vision_config=vision_config, vision_feature_layer=vision_feature_layer)


def test_llava_7b():
    assert llava_shape(config(), (16, 24)) == LLAVA_7B


def test_grouped_query_attention():
    shape = llava_shape(config(num_key_value_heads=8, head_dim=64), ())
    assert (shape.decoder.num_kv_heads, shape.decoder.head_dim) == (8, 64)


@pytest.mark.parametrize(("layer", "num_layers"), [(-1, 24), (-2, 23), (22, 22)])
def test_the_tower_runs_up_to_the_selected_layer(layer, num_layers):
    assert llava_shape(config(vision_feature_layer=layer), ()).vision.num_layers == num_layers
