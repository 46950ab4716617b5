"""The picture that the tower saw, from pixels in the tower's own form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Qwen2VLImageProcessor

from duet_server.api.inspection.overlay import seen_picture
from duet_server.plan import Unit, VisionShape

SHAPE = VisionShape(None, False, 1, 8, 8, 4, 0, patches_per_token=4, frames_per_patch=2)
CLIP = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}


@pytest.fixture
def picture() -> np.ndarray:
    """3 x 5 tokens of 2 x 2 patches of 4 pixels."""
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def shown(pixels: torch.Tensor, processor) -> np.ndarray:
    return seen_picture(pixels, Unit(3, 5), processor, SHAPE)


@pytest.mark.parametrize("normalizes", [True, False], ids=["processor", "tower"])
def test_patches_are_put_together_again(picture, normalizes):
    """Whether the processor normalizes them or vLLM's tower does."""
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 6400}
    switches = {} if normalizes else {"do_rescale": False, "do_normalize": False}
    processor = Qwen2VLImageProcessor(**sizes, **CLIP, **switches)
    pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert np.array_equal(shown(pixels if normalizes else pixels.to(torch.uint8), processor), picture)


def test_a_whole_picture_is_only_denormalized(picture):
    mean, std = (torch.tensor(CLIP[key])[:, None, None] for key in ("image_mean", "image_std"))
    pixels = (torch.tensor(picture).permute(2, 0, 1) / 255 - mean) / std
    assert np.array_equal(shown(pixels, SimpleNamespace(**CLIP)), picture)
