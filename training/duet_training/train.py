"""duet-train: fine-tunes a LLaVA under compression, from a YAML configuration, with transformers' Trainer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import AutoProcessor, Trainer, TrainingArguments

from duet_server.plan import SettingsError, llava_shape, resolve_settings
from duet_training.arguments import ConfigError, DuetArguments, read_arguments
from duet_training.collator import Collator
from duet_training.dataset import ConversationDataset
from duet_training.records import BadDataError, read_records
from duet_training.trainable import adapted, load_model
from duet_training.trainer import DuetTrainer, last_whole_checkpoint


def make_trainer(duet: DuetArguments, training: TrainingArguments) -> Trainer:
    """Build model, data and trainer from a configuration, and check them before training starts.

    Raises:
        ConfigError, SettingsError, BadDataError: if the configuration or the data is wrong.
    """
    if training.n_gpu > 1:
        raise ConfigError(f"one process has {training.n_gpu} GPUs, expected one: use torchrun or accelerate launch")
    model = load_model(duet)
    shape = llava_shape(model.config, model.boundaries)
    compressions = [resolve_settings(request, shape) for request in duet.compressions]
    processor = AutoProcessor.from_pretrained(duet.model)
    num_patches = shape.num_patches
    tokens_per_picture = max(settings.num_entering(num_patches) for settings in compressions)
    records, _ = read_records(Path(duet.data), Path(duet.images), duet.on_bad_data)
    trainer = DuetTrainer(
        model=model if duet.lora is None else adapted(model, duet.lora),
        args=training,
        train_dataset=ConversationDataset(records, processor, tokens_per_picture, duet.max_length),
        data_collator=Collator(processor, num_patches, compressions, duet.on_bad_data, training.seed),
        processing_class=processor,
    )
    if duet.lora is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ConfigError("lora does not work with FSDP or DeepSpeed, because sharded weights cannot be merged")
    return trainer


def train(duet: DuetArguments, training: TrainingArguments) -> Path:
    """Train, or resume an interrupted run, and write a checkpoint that a server can load. Returns its directory."""
    trainer = make_trainer(duet, training)
    output = Path(training.output_dir)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(output) if duet.resume else None)
    if duet.lora is not None:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    return output


def main() -> None:
    parser = argparse.ArgumentParser(prog="duet-train", description="Fine-tune a LLaVA with both stages of DUET.")
    parser.add_argument("config", type=Path, help="a YAML file; examples are in training/duet_training/configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces this key's value")
    words = parser.parse_args()
    try:
        duet, training = read_arguments(words.config, words.overrides)
        output = train(duet, training)
    except (ConfigError, SettingsError, BadDataError, OSError) as error:
        sys.exit(f"duet-train: {error}")
    if training.should_save:  # only one process prints
        flags = f" --duet-boundaries {','.join(map(str, duet.boundaries))}" if duet.boundaries else ""
        print(f"duet-train: done; serve it with: duet-server serve {output}{flags}")


if __name__ == "__main__":
    main()
