"""Transformers' Trainer, adapted to the lengths of our samples and the weight names in our checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from duet_training.modeling import DuetLlava


class LengthSampler(LengthGroupedSampler):
    """Batches samples of similar length. Only seed and epoch decide the order, so that a resumed run repeats it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class DuetTrainer(Trainer):
    _sampler: LengthSampler | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._sampler = LengthSampler(batch_size, list(dataset.lengths), seed)
        return self._sampler

    def _run_epoch(self, *, epoch: int, **rest: Any) -> None:
        """Tell the sampler the epoch. When several processes resume, wrappers hide the sampler from Trainer."""
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **rest)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load a checkpoint of the whole model by its published names. Trainer would skip them with only a warning."""
        is_whole = isinstance(self.model, DuetLlava) and not self.is_fsdp_enabled
        if not is_whole:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = DuetLlava.from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict())


def last_whole_checkpoint(output: Path) -> str | None:
    """The newest complete checkpoint. An incomplete one lacks the trainer's state."""
    folders = [path.parent for path in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))) if folders else None
