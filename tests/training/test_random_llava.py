from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from duet_training.random_llava import DECODER_SIZES, TOWER_SIZES, write_llava


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("random"), TOWER_SIZES, DECODER_SIZES, config={"mark": True})


def test_the_checkpoint_is_a_small_llava(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.model_type == "llava"
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576
    assert config.text_config.num_hidden_layers == 8
    assert config.mark


def test_transformers_finds_every_weight(checkpoint):
    _, report = LlavaForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]


def test_one_token_a_byte_and_back(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = "Größe: 3 µm? 日本"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(token_ids) == len(text.encode())
    assert tokenizer.decode(token_ids) == text


def test_answers_are_printable(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": "Is it warm?"}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == "<s>USER: Is it warm? ASSISTANT:"
    inputs = processor(text=prompt, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs.input_ids.shape[1] :]
    answer = processor.decode(tokens, skip_special_tokens=True)
    assert answer.isascii()
    assert answer.isprintable()
    assert len(answer) > 10


def test_the_checkpoint_is_always_the_same(checkpoint, tmp_path):
    again = write_llava(tmp_path, TOWER_SIZES, DECODER_SIZES)
    assert (again / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
