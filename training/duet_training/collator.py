"""Collator: from samples to one batch of the model's forward, under one setting drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from duet_server.plan import CompressionSettings
from duet_training.conversations import IGNORED
from duet_training.records import BadDataError, Problem, check_on_bad_data, refuse_or_warn

Sample = dict[str, Any]


class Collator:
    """Makes batches of what ``ConversationDataset`` gives.

    Args:
        processor: the model's; its image processor prepares the pictures, as it does where the model is served.
        num_patches: N, the patches of one picture.
        compressions: the settings to draw from, one for each batch.
        on_bad_data: for a sample that is no good: ``refuse`` raises, ``skip`` logs a warning and leaves it out; a batch
            without any good one then teaches nothing.
        seed: with the records of a batch, what is drawn for it.
    """

    def __init__(
        self,
        processor: Any,
        num_patches: int,
        compressions: Sequence[CompressionSettings],
        on_bad_data: str = "refuse",
        seed: int = 0,
    ) -> None:
        check_on_bad_data(on_bad_data)
        if not compressions:
            raise ValueError("compressions is empty, expected at least one setting")
        self.processor = processor
        self.num_patches = num_patches
        self.compressions = tuple(compressions)
        self.on_bad_data = on_bad_data
        self.seed = seed

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The arguments of the model's forward for B samples, padded on the right to T tokens.

        Returns:
            ``input_ids [B, T]`` with the image token once for every visual token that enters, ``labels [B, T]``,
            ``attention_mask [B, T]``, ``guiding [B, T]`` bool, ``pixel_values [images, 3, H, W]`` in the prompts' order
            (absent without pictures) and ``compression``, the batch's settings.

        Raises:
            BadDataError: for a sample that is to be refused.
        """
        compression = self._draw(samples)
        good, pictures = self._read(samples)
        rows = [self._expand(sample, compression) for sample in good] or [self._nothing()]
        batch: dict[str, Any] = self._pad(rows)
        if pictures:
            prepared = self.processor.image_processor(images=pictures, return_tensors="pt")
            batch["pixel_values"] = prepared["pixel_values"]
        return {**batch, "compression": compression}

    def _draw(self, samples: Sequence[Sample]) -> CompressionSettings:
        """By the seed and by what is in the batch, so that a resumed run draws the same."""
        rng = np.random.default_rng([self.seed, *(sample["index"] for sample in samples)])
        return self.compressions[rng.integers(len(self.compressions))]

    def _read(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Image.Image]]:
        """The good samples, and all of their pictures."""
        good: list[Sample] = []
        pictures: list[Image.Image] = []
        problems: list[Problem] = []
        for sample in samples:
            try:
                pictures += _read_pictures(sample)
                good.append(sample)
            except BadDataError as error:
                problems.append(Problem(sample["index"], sample["id"], str(error)))
        refuse_or_warn(problems, self.on_bad_data, "batch")
        return good, pictures

    def _expand(self, sample: Sample, compression: CompressionSettings) -> dict[str, Tensor]:
        """The sample's tokens ``[t]``, those of a picture repeated for every visual token that enters."""
        ids = torch.tensor(sample["input_ids"])
        num_entering = compression.num_entering(self.num_patches)
        repeats = torch.where(ids == self.processor.image_token_id, num_entering, 1)
        rows = {
            "input_ids": ids,
            "labels": torch.tensor(sample["labels"]),
            "attention_mask": torch.ones_like(ids),
            "guiding": torch.tensor(sample["guides"][compression.guide]),
        }
        return {name: row.repeat_interleave(repeats) for name, row in rows.items()}

    def _nothing(self) -> dict[str, Tensor]:
        """A text of one token, none of which is to be learnt: other processes wait for this one's step."""
        return {name: torch.tensor([value]) for name, value in {**self._padding, "attention_mask": 1}.items()}

    @property
    def _padding(self) -> dict[str, int]:
        """Of every row's tensors."""
        tokenizer = self.processor.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return {"input_ids": pad, "labels": IGNORED, "attention_mask": 0, "guiding": False}

    def _pad(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)
            for name, value in self._padding.items()
        }


def read_picture(path: str) -> Image.Image:
    """A picture as the server sees it: upright, RGB, what is transparent in it on white.

    Raises:
        BadDataError: if it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            return _rgb(_upright(picture))
    except Exception as error:  # decoders raise whatever they stumble over
        raise BadDataError(f"picture {path} cannot be decoded, expected a whole image file: {error}") from error


def _read_pictures(sample: Sample) -> list[Image.Image]:
    if "problem" in sample:
        raise BadDataError(sample["problem"].text)
    return [read_picture(path) for path in sample["image_paths"]]


def _upright(picture: Image.Image) -> Image.Image:
    with suppress(Exception):  # where the orientation is unreadable, the picture may still be fine
        return ImageOps.exif_transpose(picture)
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" or not picture.has_transparency_data:
        return picture.convert("RGB")
    opaque = picture.convert("RGBA")
    white = Image.new("RGB", opaque.size, "white")
    white.paste(opaque, mask=opaque.getchannel("A"))
    return white
