"""duet-train: fine-tunes a LLaVA compressed, from a YAML configuration, with transformers' Trainer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoProcessor, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from duet_server.plan import SettingsError, llava_shape, resolve_settings
from duet_training import attention as attention  # registers sdpa_float32
from duet_training.arguments import ConfigError, DuetArguments, read_arguments
from duet_training.collator import Collator
from duet_training.dataset import ConversationDataset
from duet_training.modeling import DuetLlava
from duet_training.records import BadDataError, read_records


class DuetTrainer(Trainer):
    """Transformers' Trainer, which knows the lengths of our samples without tokenizing them all first."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch_size, lengths=list(dataset.lengths))


def make_trainer(duet: DuetArguments, training: TrainingArguments) -> Trainer:
    """Model, data and trainer of a configuration, all checked, before any time goes into them.

    Raises:
        ConfigError, SettingsError, BadDataError: for what the configuration or the data get wrong.
    """
    model = load_model(duet)
    compressions = [
        resolve_settings(request, llava_shape(model.config, model.boundaries)) for request in duet.compressions
    ]
    processor = AutoProcessor.from_pretrained(duet.model)
    num_patches = model.model.vision_tower.embeddings.num_patches
    tokens_per_picture = max(settings.num_entering(num_patches) for settings in compressions)
    records, _ = read_records(Path(duet.data), Path(duet.images), duet.on_bad_data)
    return DuetTrainer(
        model=adapted(model, duet.lora) if duet.lora else model,
        args=training,
        train_dataset=ConversationDataset(records, processor, tokens_per_picture, duet.max_length),
        data_collator=Collator(processor, num_patches, compressions, duet.on_bad_data, training.seed),
        processing_class=processor,
    )


def load_model(duet: DuetArguments) -> DuetLlava:
    """The checkpoint, of which the parts to be trained, and no others, take gradients."""
    model = DuetLlava.from_pretrained(duet.model, dtype=getattr(torch, duet.dtype), attn_implementation=duet.attention)
    if duet.boundaries is not None:
        model.boundaries = tuple(duet.boundaries)
    if duet.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    parts: dict[str, tuple[nn.Module, ...]] = {
        "tower": (model.model.vision_tower,),
        "projector": (model.model.multi_modal_projector,),
        "language_model": (model.model.language_model, model.lm_head),
    }
    model.requires_grad_(False)
    for module in (module for part in duet.train for module in parts[part]):
        module.requires_grad_(True)
    return model


def adapted(model: DuetLlava, lora: Any) -> Any:
    """``model`` with low-rank adapters on its decoder; parts other than the decoder learn as they did.

    Raises:
        ConfigError: without PEFT.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("lora needs PEFT: pip install 'duet-server[train]'") from None
    projector = model.model.multi_modal_projector
    trains_projector = next(projector.parameters()).requires_grad
    saved = {"modules_to_save": ["multi_modal_projector"]} if trains_projector else {}
    modules = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    return get_peft_model(model, LoraConfig(**{"target_modules": modules, **saved, **lora}))


def train(duet: DuetArguments, training: TrainingArguments) -> Path:
    """Train, go on where an earlier run was cut off, and write a checkpoint that a server loads; its directory."""
    trainer = make_trainer(duet, training)
    output = Path(training.output_dir)
    last = get_last_checkpoint(str(output)) if duet.resume and output.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if duet.lora:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    return output


def main() -> None:
    parser = argparse.ArgumentParser(prog="duet-train", description="Fine-tune a LLaVA with both stages of DUET.")
    parser.add_argument("config", type=Path, help="a YAML file, such as those in training/duet_training/configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in the place of the file's")
    words = parser.parse_args()
    try:
        output = train(*read_arguments(words.config, words.overrides))
    except (ConfigError, SettingsError, BadDataError) as error:
        sys.exit(f"duet-train: {error}")
    print(f"duet-train: done; serve it with: duet-server serve {output}")


if __name__ == "__main__":
    main()
