"""The builder of the demo model from end to end, with sizes too small for learning."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from duet_training.demo import tower
from duet_training.demo.__main__ import build
from duet_training.demo.model import DECODER_SIZES, write_untrained


def test_one_call_builds_what_ships(tmp_path, monkeypatch):
    # No workers: engines of other tests leave OpenMP threads in this process, and a fork does not survive them.
    monkeypatch.setitem(tower._TRAINING, "dataloader_num_workers", 0)
    overrides = [
        "dataloader_num_workers=0",
        "max_steps=2",
        "per_device_train_batch_size=4",
        "compile=false",
        "disable_tqdm=true",
    ]
    shipped = build(tmp_path, 0, (64, 64, 8), overrides)

    assert {path.name for path in shipped.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((shipped / "config.json").read_text())["duet_demo"] is True
    weights = load_file(shipped / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert (shipped / "model.safetensors").stat().st_size < 12_000_000
    _, report = LlavaForConditionalGeneration.from_pretrained(shipped, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    stages = [
        load_file(tmp_path / stage / "model.safetensors")[name] for stage in ("tower", "uncompressed", "compressed")
    ]
    assert not stages[0].equal(stages[1])
    assert not stages[1].equal(stages[2])
    assert weights[name].equal(stages[2].bfloat16())

    written = (tmp_path / "compressed" / "model.safetensors").stat().st_mtime_ns
    build(tmp_path, 0, (64, 64, 8), overrides)
    assert (tmp_path / "compressed" / "model.safetensors").stat().st_mtime_ns == written, "existing parts are kept"


def test_words_of_the_demo_are_tokens(tmp_path):
    processor = AutoProcessor.from_pretrained(write_untrained(tmp_path / "untrained", seed=0))
    for word in ("red", "circle", "letter", "K", "7", "seven", "left", "yes"):
        assert len(processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    assert len(processor.tokenizer) <= DECODER_SIZES["vocab_size"]
    text = "Größe: 3 µm? 日本"
    assert processor.tokenizer.decode(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) == text
