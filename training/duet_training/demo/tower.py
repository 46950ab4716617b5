"""Pre-trains the demo's vision tower on the attributes of what is drawn, so that its CLS attends to things.

Each patch of the feature layer tells what covers it; CLS, there and behind the last layer, how many of each kind and
colour there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

from duet_training.attention import SDPA_FLOAT32
from duet_training.demo.data import TOWER_SET, picture
from duet_training.demo.scene import CANVAS, COLORS, GLYPHS, KINDS, MAX_THINGS, RADII, Scene

_GLYPHS = tuple("".join(GLYPHS.values()))
_SIZES = tuple(RADII)
NOTHING = -100  # no target: a patch of background, or what is no letter or digit
PATCH_CLASSES = {"kind": len(KINDS) + 1, "color": len(COLORS), "size": len(_SIZES), "glyph": len(_GLYPHS)}
_NUM_COUNTED = len(KINDS) + len(COLORS) + 1
_OFFSET_UNIT = 20  # pixels


def patch_targets(scene: Scene, patch_size: int) -> dict[str, np.ndarray]:
    """Per patch ``[N]`` the class of the thing that covers its centre, and ``offset [N, 2]`` to that thing's centre.

    ``kind`` of the background is the last class; the others are ``NOTHING`` there.
    """
    side = CANVAS // patch_size
    centers = (np.arange(side) + 0.5) * patch_size
    y, x = (axis.ravel() for axis in np.meshgrid(centers, centers, indexing="ij"))
    targets = {name: np.full(side * side, NOTHING) for name in PATCH_CLASSES}
    targets["kind"][:] = len(KINDS)
    offset = np.full((side * side, 2), np.nan, dtype=np.float32)
    for thing in scene:
        reach = max(thing.radius, 0.75 * patch_size)
        inside = np.maximum(np.abs(x - thing.x), np.abs(y - thing.y)) <= reach
        targets["kind"][inside] = KINDS.index(thing.kind)
        targets["color"][inside] = COLORS.index(thing.color)
        targets["size"][inside] = _SIZES.index(thing.size)
        targets["glyph"][inside] = _GLYPHS.index(thing.glyph) if thing.glyph else NOTHING
        offset[inside] = np.stack([thing.x - x[inside], thing.y - y[inside]], axis=1) / _OFFSET_UNIT
    return {**targets, "offset": offset}


def count_targets(scene: Scene) -> np.ndarray:
    """How many there are of each kind, of each colour, and in all."""
    kinds = [sum(thing.kind == kind for thing in scene) for kind in KINDS]
    colors = [sum(thing.color == color for thing in scene) for color in COLORS]
    return np.array([*kinds, *colors, len(scene)])


def normalized(drawn: Image.Image, processor: Any) -> np.ndarray:
    """What ``processor`` makes of a picture of the model's own size ``[3, H, W]``, in a tenth of its time."""
    mean, std = (np.array(values, dtype=np.float32) for values in (processor.image_mean, processor.image_std))
    return ((np.asarray(drawn) * np.float32(processor.rescale_factor) - mean) / std).transpose(2, 0, 1)


class SceneDataset(Dataset):
    """Scenes drawn as they are asked for: pixels and targets."""

    def __init__(self, num_pictures: int, seed: int, processor: Any, patch_size: int) -> None:
        self.num_pictures, self.seed = num_pictures, seed
        self.processor, self.patch_size = processor, patch_size

    def __len__(self) -> int:
        return self.num_pictures

    def __getitem__(self, idx: int) -> dict[str, Any]:
        scene, drawn, _ = picture(self.seed, TOWER_SET, idx)
        return {"pixel_values": normalized(drawn, self.processor), "counts": count_targets(scene), **patch_targets(scene, self.patch_size)}


class AttributeModel(nn.Module):
    """The tower under heads that are thrown away after training."""

    def __init__(self, tower: nn.Module, feature_layer: int) -> None:
        super().__init__()
        self.tower, self.feature_layer = tower, feature_layer
        width = tower.config.hidden_size
        self.patch_head = nn.Linear(width, sum(PATCH_CLASSES.values()) + 2)
        self.feature_counts, self.last_counts = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, _NUM_COUNTED * (MAX_THINGS + 1)))
            for _ in range(2)
        )

    def forward(self, pixel_values: Tensor, counts: Tensor, offset: Tensor, **targets: Tensor) -> dict[str, Tensor]:
        outputs = self.tower(pixel_values, output_hidden_states=True)
        features = outputs.hidden_states[self.feature_layer]
        loss = self._patch_loss(features[:, 1:], offset, targets)
        for head, cls in ((self.feature_counts, features[:, 0]), (self.last_counts, outputs.pooler_output)):
            loss = loss + _cross_entropy(head(cls).unflatten(-1, (_NUM_COUNTED, -1)), counts)
        return {"loss": loss}

    def _patch_loss(self, patches: Tensor, offset: Tensor, targets: dict[str, Tensor]) -> Tensor:
        *logits, offsets = self.patch_head(patches).split([*PATCH_CLASSES.values(), 2], dim=-1)
        losses = [_cross_entropy(logit, targets[name]) for name, logit in zip(PATCH_CLASSES, logits, strict=True)]
        is_thing = ~offset.isnan()
        distance = F.smooth_l1_loss(offsets.float()[is_thing], offset[is_thing])
        return torch.stack([*losses, distance]).sum()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=NOTHING)


def pretrain_tower(checkpoint: Path, num_pictures: int, seed: int, **arguments: Any) -> None:
    """Train the vision tower of a LLaVA checkpoint in place; ``arguments`` are those of TrainingArguments."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation=SDPA_FLOAT32)
    tower = model.model.vision_tower
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    dataset = SceneDataset(num_pictures, seed, processor, tower.config.patch_size)
    attribute_model = AttributeModel(tower, model.config.vision_feature_layer)
    trainer_arguments = TrainingArguments(
        seed=seed, save_strategy="no", report_to="none", remove_unused_columns=False, **arguments
    )
    Trainer(model=attribute_model, args=trainer_arguments, train_dataset=dataset).train()
    model.save_pretrained(checkpoint)
