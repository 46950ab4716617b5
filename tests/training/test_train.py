"""duet-train from a configuration to a checkpoint, on a tiny model and a few drawn pictures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer

from duet_training.arguments import ConfigError, read_arguments
from duet_training.demo.data import write_training_set
from duet_training.train import main, make_trainer, train
from duet_training.trainable import adapted, load_model
from duet_training.trainer import DuetTrainer
from tests.golden_cases import checkpoint_path

MODEL = checkpoint_path("llava_gqa")
SEVERAL = "[off, {dominant: 20, contextual: 6, keep: [0.5, 0.0]}, {keep: [0.5, 0.25]}]"
CONFIG = f"""
model: {MODEL}
compression: {{dominant: 20, contextual: 6, keep: [0.5, 0.0]}}
max_length: 512
max_steps: 4
per_device_train_batch_size: 3
train_sampling_strategy: group_by_length
learning_rate: 1e-3
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    data = write_training_set(folder, num_pictures=6, questions_per_picture=3, seed=0)
    path = folder / "config.yaml"
    path.write_text(f"{CONFIG}\ndata: {data}\nimages: {folder}\noutput_dir: {folder / 'whole'}\n")
    return path


@pytest.fixture(scope="module")
def trained(config: Path) -> Path:
    return train(*read_arguments(config))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_checkpoint_is_a_llava_of_the_same_names(trained: Path):
    before, after = weights(MODEL), weights(trained)
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name].float(), after[name].float())}
    assert moved
    assert not any("vision_tower" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    assert "language_model.lm_head.weight" in moved
    assert json.loads((trained / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    assert AutoProcessor.from_pretrained(trained).chat_template == AutoProcessor.from_pretrained(MODEL).chat_template


def test_an_interrupted_run_resumes(config: Path, tmp_path: Path):
    """In the middle of its second epoch, with settings drawn for each batch and an unfinished newer checkpoint."""
    overrides = ["max_steps=4", "save_steps=3", f"compression={SEVERAL}"]
    whole = train(*read_arguments(config, [*overrides, f"output_dir={tmp_path / 'whole'}"]))
    cut = tmp_path / "cut"
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    (cut / "checkpoint-9").mkdir()
    resumed = train(*read_arguments(config, [*overrides, f"output_dir={cut}"]))
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=1e-5, atol=1e-7, msg=name)


def test_adapters_are_merged(config: Path, tmp_path: Path):
    lora = ["lora={r: 4, lora_alpha: 8}", "max_steps=2", "learning_rate=0.01"]
    merged = train(*read_arguments(config, [*lora, f"output_dir={tmp_path}"]))
    _, report = LlavaForConditionalGeneration.from_pretrained(merged, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = weights(MODEL), weights(merged)
    changed = {name for name in after if not torch.equal(before[name].float(), after[name].float())}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in changed
    assert "multi_modal_projector.linear_1.weight" in changed
    assert "language_model.lm_head.weight" not in changed


def test_adapters_leave_the_tower_alone(config: Path):
    duet, _ = read_arguments(config, ["lora={target_modules: [q_proj, v_proj]}"])
    learning = [
        name for name, weight in adapted(load_model(duet), duet.lora).named_parameters() if weight.requires_grad
    ]
    assert any("q_proj.lora_A" in name for name in learning)
    assert not any("vision_tower" in name for name in learning)


def test_adapters_of_sharded_weights_are_refused(config: Path, monkeypatch):
    """Also if the launcher shards them, without a word in the configuration."""
    post_process = DuetTrainer.create_accelerator_and_postprocess

    def sharding(trainer: DuetTrainer) -> None:
        post_process(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(DuetTrainer, "create_accelerator_and_postprocess", sharding)
    with pytest.raises(ConfigError, match="does not work with FSDP or DeepSpeed"):
        make_trainer(*read_arguments(config, ["lora={r: 4}"]))


@pytest.mark.parametrize("num_skipped", [0, 1])
def test_the_order_of_several_processes_follows_the_epoch(config: Path, num_skipped: int):
    """In a resumed run of two processes, accelerate's wrappers skip the batches."""
    trainer = make_trainer(*read_arguments(config, ["per_device_train_batch_size=1"]))
    loader = torch.utils.data.DataLoader(range(6), batch_size=1, sampler=trainer._get_train_sampler())
    orders = {}
    for epoch in (0, 1):
        trainer._sampler.set_epoch(epoch)
        orders[epoch] = [int(batch) for batch in loader][::2]
    assert orders[0] != orders[1]
    sharded = prepare_data_loader(loader, num_processes=2, process_index=0, put_on_device=False)
    trainer._sampler.set_epoch(0)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_run_epoch", lambda self, epoch, train_dataloader: seen.extend(train_dataloader))
        trainer._run_epoch(epoch=1, train_dataloader=skip_first_batches(sharded, num_skipped))
    assert [int(batch) for batch in seen] == orders[1][num_skipped:]


def test_training_learns(config: Path, tmp_path: Path):
    """On the same few conversations, which repeat."""
    steps = ["max_steps=30", "logging_steps=5", "save_strategy=no", "gradient_checkpointing=true"]
    trainer = make_trainer(*read_arguments(config, [*steps, f"output_dir={tmp_path}"]))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0], losses


def test_only_the_named_parts_learn(config: Path):
    duet, _ = read_arguments(config, ["train=[projector]"])
    learning = {name for name, weight in load_model(duet).named_parameters() if weight.requires_grad}
    assert learning
    assert all("multi_modal_projector" in name for name in learning)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compression={dominant: 200, contextual: 0}", "compression.dominant is 200"),
        ("boundaries=[9]", "boundaries is"),
        ("data=missing.json", "missing.json"),
        ("trains=[tower]", "no key 'trains'"),
    ],
)
def test_a_mistake_ends_the_command_with_one_sentence(config: Path, monkeypatch, override: str, message: str):
    monkeypatch.setattr(sys, "argv", ["duet-train", str(config), override])
    with pytest.raises(SystemExit, match="duet-train: ") as ended:
        main()
    assert message in str(ended.value)


def test_adapters_need_the_language_model(config: Path):
    with pytest.raises(ConfigError, match="train must list language_model"):
        read_arguments(config, ["lora={r: 4}", "train=[projector]"])
