from __future__ import annotations

import pytest
from transformers import AutoProcessor, LlavaConfig

from benchmarks.model import LLAVA_7B, MODELS
from duet_server.plan import prefill_flops


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
    config, processor = LlavaConfig.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert config.text_config.vocab_size == model.text["vocab_size"]
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == config.image_token_id
