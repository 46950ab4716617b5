"""Which attention layers can be built anew for a segment. No engine runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType, subclass_attention_backend_with_overrides
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from duet_server.engine.attention import SegmentAttention
from tests.engine.test_supported import create_config, on_cpu

pytestmark = on_cpu

NAME = "decoder.layers.1.self_attn.attn"
NUM_HEADS = 4


@pytest.fixture(scope="module")
def vllm_config():
    config = create_config(dtype="float32")
    with set_current_vllm_config(config):
        yield config


@pytest.fixture(autouse=True)
def no_layer_yet(vllm_config):
    vllm_config.compilation_config.static_forward_context.clear()


class OtherAttention(Attention):
    pass


def for_a_segment(vllm_config: Any, layer_class: type[Attention] = Attention, **arguments: Any) -> SegmentAttention:
    layer = layer_class(NUM_HEADS, 32, 0.5, num_kv_heads=2, prefix=NAME, **arguments)
    return SegmentAttention(layer, 2, None, vllm_config)


def test_the_copy_is_the_layer_that_runs(vllm_config):
    layer = for_a_segment(vllm_config, cache_config=vllm_config.cache_config)
    assert vllm_config.compilation_config.static_forward_context == {NAME: layer}
    assert (layer.num_heads, layer.num_kv_heads, layer.head_size, layer.impl.scale) == (NUM_HEADS, 2, 32, 0.5)
    assert layer.get_kv_cache_spec(vllm_config).segment_idx == 2


def other_backend() -> Any:
    return subclass_attention_backend_with_overrides("Other", CPUAttentionBackend, {})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"layer_class": OtherAttention}, "the class OtherAttention"),
        ({"attn_backend": other_backend()}, "the attention backend Other"),
        ({"per_layer_sliding_window": 64}, "a sliding window"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "attn_type"),
        ({"logits_soft_cap": 30.0}, "logits_soft_cap"),
        ({"alibi_slopes": [0.5] * NUM_HEADS}, "alibi_slopes"),
        ({"sinks": torch.zeros(NUM_HEADS)}, "sinks"),
        ({"head_size_v": 16}, "head_size_v"),
        ({"mm_prefix_clamp_sliding_window": True}, "mm_prefix_clamp_sliding_window"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_layer_that_is_more_than_plain_attention_is_refused(vllm_config, arguments, named):
    with pytest.raises(ValueError, match=rf"{NAME} has {named}.*plain causal attention"):
        for_a_segment(vllm_config, **arguments)


def test_a_shared_kv_cache_is_refused(vllm_config):
    target = "decoder.layers.0.self_attn.attn"
    Attention(NUM_HEADS, 32, 0.5, num_kv_heads=2, prefix=target)
    with pytest.raises(ValueError, match="kv_sharing_target_layer_name"):
        for_a_segment(vllm_config, kv_sharing_target_layer_name=target)


def test_attention_within_images_is_refused(vllm_config, monkeypatch):
    monkeypatch.setitem(vars(vllm_config.model_config), "is_mm_prefix_lm", True)  # a cached property
    with pytest.raises(ValueError, match="bidirectional attention within images"):
        for_a_segment(vllm_config)
