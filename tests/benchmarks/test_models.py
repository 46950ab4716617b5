from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from benchmarks.models import LLAVA_7B, MODELS, QWEN3_VL_8B, SMALL_QWEN3_VL
from duet_server.plan import cut_units, prefill_flops, presets
from duet_server.plan.wire import stage1_rule


def test_the_large_model_has_the_shape_of_llava_7b():
    shape = LLAVA_7B.shape
    assert (shape.vision.num_patches, shape.vision.num_layers) == (576, 23)  # the last of 24 does not run
    assert (shape.segment_layers, shape.boundaries) == ((16, 8, 8), (16, 24))
    # 7 billion parameters at 2 FLOPs per token, plus the tower.
    assert prefill_flops(shape, (640, 640, 640), [576], 576) == pytest.approx(2 * 640 * 6.9e9, rel=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_without_weights_can_be_read(tmp_path, name):
    model = MODELS[name]
    assert model.write_checkpoint(tmp_path) == tmp_path
    assert not list(tmp_path.glob("*.safetensors"))
    config, processor = AutoConfig.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert config.text_config.vocab_size == model.text["vocab_size"]
    assert processor.tokenizer.convert_tokens_to_ids(processor.image_token) == config.image_token_id
    assert config.image_token_id == model.image_token
    pixels = Image.new("RGB", (model.picture_size,) * 2)
    prompt = processor(text=processor.image_token, images=[pixels], return_tensors="pt")["input_ids"][0]
    assert (prompt == model.image_token).sum() == model.shape.num_patches


def test_the_large_qwen3_vl_has_the_shape_of_the_8b():
    shape = QWEN3_VL_8B.shape
    assert (shape.num_patches, shape.vision.num_layers, shape.boundaries) == (1024, 27, (18, 27))
    decoder = prefill_flops(shape, (1088,) * 3, [], 0) / (2 * 1088)
    assert decoder == pytest.approx(6.95e9 + 36 * 2 * 4096 * 544, rel=0.01)  # parameters of its layers, and attention


def test_both_qwen3_vl_have_the_same_share_of_tower_flops():
    shares = []
    for model in (SMALL_QWEN3_VL, QWEN3_VL_8B):
        whole = prefill_flops(model.shape, (1088,) * 3, [1024], 1024)
        shares.append(prefill_flops(model.shape, (0,) * 3, [1024], 0) / whole)
    assert shares == pytest.approx([0.27, 0.273], abs=0.005)


@pytest.mark.parametrize("name", ["light", "balanced", "aggressive"])
def test_presets_for_this_size_are_what_the_server_gives_for_any(name):
    fixed = QWEN3_VL_8B.shape
    free = replace(fixed, vision=replace(fixed.vision, num_patches=None))
    (unit,) = cut_units(stage1_rule(presets(free)[name], free), [(32, 32)], has_cls=False)
    assert (unit.dominant, unit.contextual) == (presets(fixed)[name].dominant, presets(fixed)[name].contextual)
