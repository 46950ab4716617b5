"""Collator: builds a batch for the model's forward pass, with one compression setting drawn for the whole batch."""

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
    """Builds batches from the samples of ``ConversationDataset``.

    Args:
        processor: the model's processor. Its image processor prepares the pictures, as in the server.
        num_patches: N, the patches of one picture.
        compressions: the settings; one of them is drawn for each batch.
        on_bad_data: ``refuse`` raises for a bad sample; ``skip`` logs a warning and leaves the sample out. Nothing is
            learned from a batch without a good sample.
        seed: the seed and the records of a batch determine its setting.
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
        """The arguments of the model's forward pass for B samples, padded on the right to T tokens.

        Returns:
            ``input_ids [B, T]`` with one image token for every entering visual token, ``labels [B, T]``,
            ``attention_mask [B, T]``, ``guiding [B, T]`` bool, ``pixel_values [images, 3, H, W]`` in prompt order
            (absent without pictures) and ``compression``, the batch's setting.

        Raises:
            BadDataError: if a sample is bad and ``on_bad_data`` is ``refuse``.
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
        """Draw by the seed and the batch's record indices, so that a resumed run draws the same setting."""
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
        """The sample's tensors ``[t]``, with the image token repeated for every entering visual token."""
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
        """One token that is not learned. The batch must not be empty, because other processes wait for this step."""
        return {name: torch.tensor([value]) for name, value in {**self._padding, "attention_mask": 1}.items()}

    @property
    def _padding(self) -> dict[str, int]:
        """The padding value of each tensor."""
        tokenizer = self.processor.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return {"input_ids": pad, "labels": IGNORED, "attention_mask": 0, "guiding": False}

    def _pad(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)
            for name, value in self._padding.items()
        }


def read_picture(path: str) -> Image.Image:
    """A picture as the server sees it: upright and RGB, with transparent pixels blended onto white.

    Raises:
        BadDataError: if it cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            return _rgb(_upright(picture))
    except Exception as error:  # decoders raise many types of exceptions
        raise BadDataError(f"picture {path} cannot be decoded, expected a complete image file: {error}") from error


def _read_pictures(sample: Sample) -> list[Image.Image]:
    if "problem" in sample:
        raise BadDataError(sample["problem"].text)
    return [read_picture(path) for path in sample["image_paths"]]


def _upright(picture: Image.Image) -> Image.Image:
    with suppress(Exception):  # if the orientation is unreadable, the picture may still be valid
        return ImageOps.exif_transpose(picture)
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" or not picture.has_transparency_data:
        return picture.convert("RGB")
    opaque = picture.convert("RGBA")
    white = Image.new("RGB", opaque.size, "white")
    white.paste(opaque, mask=opaque.getchannel("A"))
    return white
