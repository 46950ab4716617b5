from __future__ import annotations

import json

import pytest
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from duet_server.demo import DEMO_MARK, demo_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return demo_checkpoint(tmp_path_factory.mktemp("cache"))


def test_it_is_a_small_llava(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.model_type == "llava"
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576
    assert config.text_config.num_hidden_layers == 8
    assert getattr(config, DEMO_MARK)


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


def test_it_is_written_once_and_always_the_same(checkpoint, tmp_path):
    again = demo_checkpoint(tmp_path)
    assert (again / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    written = (again / "config.json").stat().st_mtime_ns
    assert demo_checkpoint(tmp_path) == again
    assert (again / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [again.name]  # no draft is left behind


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_checkpoint().parent == tmp_path / "duet-server"


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    checkpoint = demo_checkpoint(blocked / "cache")
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "llava"
