"""Configurations: DUET's keys and transformers', and mistakes in both."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import LlavaConfig

import duet_training
from duet_server.plan import default_boundaries, llava_shape, resolve_settings
from duet_training.arguments import ConfigError, read_arguments
from duet_training.demo.model import DECODER_SIZES, TOWER_SIZES

CONFIGS = sorted((Path(duet_training.__file__).parent / "configs").glob("*.yaml"))
PATHS = ("model=M", "data=D", "images=I", "output_dir=O", "use_cpu=true")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_keys_go_to_duet_or_to_transformers(tmp_path):
    config = write(tmp_path, "compression: {visual_tokens: 64}\nlearning_rate: 1e-4\nseed: 5\n")
    duet, training = read_arguments(config, [*PATHS, "train=[projector]", "seed=6"])

    assert (duet.model, duet.data, duet.images, duet.train) == ("M", "D", "I", ["projector"])
    assert duet.compressions == [{"visual_tokens": 64}]
    assert (training.output_dir, training.learning_rate, training.seed) == ("O", 1e-4, 6)
    assert training.remove_unused_columns is False


def test_yaml_words_stay_words_and_numbers_are_numbers(tmp_path):
    config = write(tmp_path, "compression: off\nsave_strategy: no\nbf16: false\nweight_decay: 1E-2\nmax_steps: 3")
    duet, training = read_arguments(config, PATHS)
    assert (duet.compression, training.save_strategy, training.bf16) == ("off", "no", False)
    assert (training.weight_decay, training.max_steps) == (0.01, 3)


def test_one_setting_of_several_each_batch(tmp_path):
    config = write(tmp_path, 'compression: ["off", aggressive, {visual_tokens: 64}]')
    assert read_arguments(config, PATHS)[0].compressions == ["off", "aggressive", {"visual_tokens": 64}]


@pytest.mark.parametrize("config", [path for path in CONFIGS if "accelerate" not in path.name], ids=lambda p: p.stem)
def test_our_own_configurations_are_read(config: Path):
    duet, training = read_arguments(config, [*PATHS, "use_cpu=true"])
    written = yaml.safe_load(config.read_text())
    sizes = {"vision_config": TOWER_SIZES, "text_config": DECODER_SIZES} if config.stem.startswith("demo") else {}
    llava = LlavaConfig(**sizes)
    shape = llava_shape(llava, default_boundaries(llava.text_config.num_hidden_layers))
    assert [resolve_settings(request, shape).layer_average(shape) for request in duet.compressions]
    assert training.per_device_train_batch_size == written["per_device_train_batch_size"]
    assert training.learning_rate == pytest.approx(written["learning_rate"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "no key 'learning_rat'; did you mean learning_rate?"),
        ("xyzzy: 1", "no key 'xyzzy' in DUET or"),
        ("save_strategy: sometimes", "transformers rejects .*sometimes"),
        ("train: [encoder]", "train is 'encoder', expected one of tower, projector, language_model"),
        ("train: projector", "train is 'projector', expected a list"),
        ("train: [projector]\nlora: {r: 8}", "train must list language_model"),
        ("train: [tower, language_model]\nlora: {r: 8}", "but not tower"),
        ("lora: off", "lora is 'off', expected arguments of PEFT"),
        ("resume: no", "resume is 'no', expected true or false"),
        ("gradient_checkpointing: off", "gradient_checkpointing is 'off'"),
        ("compression: []", "compression is an empty list"),
        ("max_length: 2k", "max_length is '2k'"),
        ("on_bad_data: ignore", "on_bad_data is 'ignore', expected one of refuse, skip"),
        ("attention: eager", "attention is 'eager'"),
        ("dtype: float16", "dtype is 'float16', expected one of float32, bfloat16"),
        ("lora: {r: 8}\ndtype: bfloat16", "needs bf16: true"),
        ("label_smoothing_factor: 0.1", "label_smoothing_factor is 0.1, expected 0"),
        ("resume_from_checkpoint: last", "expected resume: true, for the last checkpoint in output_dir"),
        ("save_only_model: true", "expected resume: false"),
        ("model: ''", "does not set model"),
        ("[1, 2]", "has no keys"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text: str, message: str):
    overrides = PATHS[1:] if text.startswith("model") else PATHS if ":" in text else ()
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        read_arguments(write(tmp_path, text), overrides)


def test_missing_files_and_values_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no configuration"):
        read_arguments(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="override is 'seed', expected key=value"):
        read_arguments(write(tmp_path, "seed: 1"), ["seed"])
