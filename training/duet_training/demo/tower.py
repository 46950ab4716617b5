"""Pre-trains the demo's vision tower on the attributes of the drawn things, so that its CLS attends to them.

Each patch of the feature layer predicts the thing that covers it. CLS, in the feature layer and after the last layer,
predicts how many things there are of each kind and colour. First, linear heads make these predictions. Then the
projector and the word embeddings predict the thing of a patch, so that the patch enters the language model close to the
words for it, as CLIP aligns pictures and words.
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
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from duet_training.attention import SDPA_FLOAT32
from duet_training.demo.data import TOWER_SET, picture
from duet_training.demo.scene import CANVAS, COLORS, GLYPHS, KINDS, MAX_THINGS, PLACES, RADII, Scene

_GLYPHS = tuple("".join(GLYPHS.values()))
_SIZES = tuple(RADII)
NOTHING = -100  # no target: a background patch, or a thing that is not a letter or digit
PATCH_WORDS = {"kind": KINDS, "color": COLORS, "size": _SIZES, "glyph": _GLYPHS, "place": PLACES}
_SHARPNESS = 10.0  # scales the logits, because word vectors are normalized
_NUM_COUNTED = len(KINDS) + len(COLORS) + 1
_OFFSET_UNIT = 20  # pixels


def patch_targets(scene: Scene, patch_size: int) -> dict[str, np.ndarray]:
    """Per attribute ``[N]``, the word for the thing at each patch's centre; ``offset [N, 2]`` to the thing's centre.

    On the background, ``kind`` is the last class, ``offset`` is NaN, and the other attributes are ``NOTHING``.
    """
    side = CANVAS // patch_size
    centers = (np.arange(side) + 0.5) * patch_size
    y, x = (axis.ravel() for axis in np.meshgrid(centers, centers, indexing="ij"))
    targets = {name: np.full(side * side, NOTHING) for name in PATCH_WORDS}
    targets["kind"][:] = len(KINDS)
    offset = np.full((side * side, 2), np.nan, dtype=np.float32)
    for thing in scene:
        reach = max(thing.radius, 0.75 * patch_size)
        inside = np.maximum(np.abs(x - thing.x), np.abs(y - thing.y)) <= reach
        for name, words in PATCH_WORDS.items():
            word = getattr(thing, name)
            targets[name][inside] = words.index(word) if word else NOTHING
        offset[inside] = np.stack([thing.x - x[inside], thing.y - y[inside]], axis=1) / _OFFSET_UNIT
    return {**targets, "offset": offset}


def count_targets(scene: Scene) -> np.ndarray:
    """The number of things of each kind, of each colour, and in total."""
    kinds = [sum(thing.kind == kind for thing in scene) for kind in KINDS]
    colors = [sum(thing.color == color for thing in scene) for color in COLORS]
    return np.array([*kinds, *colors, len(scene)])


def normalized(drawn: Image.Image, processor: Any) -> np.ndarray:
    """The output ``[3, H, W]`` of ``processor`` for a picture of the model's size, in a tenth of its time."""
    mean, std = (np.array(values, dtype=np.float32) for values in (processor.image_mean, processor.image_std))
    return ((np.asarray(drawn) * np.float32(processor.rescale_factor) - mean) / std).transpose(2, 0, 1)


class SceneDataset(Dataset):
    """Pixels and targets of scenes, which are drawn when they are read."""

    def __init__(self, pictures: range, seed: int, processor: Any, patch_size: int) -> None:
        self.pictures, self.seed = pictures, seed
        self.processor, self.patch_size = processor, patch_size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        scene, drawn, _ = picture(self.seed, TOWER_SET, self.pictures[idx])
        return {
            "pixel_values": normalized(drawn, self.processor),
            "counts": count_targets(scene),
            **patch_targets(scene, self.patch_size),
        }


class LinearHead(nn.Module):
    """Logits of the background and of every attribute's words, from a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1 + sum(map(len, PATCH_WORDS.values())))

    def forward(self, patches: Tensor) -> Tensor:
        return self.linear(patches)


class WordHead(nn.Module):
    """The same logits, from the similarity of a projected patch to the word embeddings."""

    def __init__(self, projector: nn.Module, embeddings: nn.Embedding, tokenizer: Any) -> None:
        super().__init__()
        self.projector, self.embeddings = projector, embeddings
        self.background = nn.Parameter(torch.randn(embeddings.embedding_dim))
        words = [word for group in PATCH_WORDS.values() for word in group]
        self.token_ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]

    def forward(self, patches: Tensor) -> Tensor:
        words = [self.embeddings(torch.tensor(ids)).mean(dim=0) for ids in self.token_ids]
        return _SHARPNESS * self.projector(patches) @ F.normalize(torch.stack([self.background, *words]), dim=-1).T


class AttributeModel(nn.Module):
    """The tower with its heads. The heads for counts and offsets are discarded after training."""

    def __init__(self, tower: nn.Module, feature_layer: int, patch_head: nn.Module) -> None:
        super().__init__()
        self.tower, self.feature_layer, self.patch_head = tower, feature_layer, patch_head
        width = tower.config.hidden_size
        self.offset_head = nn.Linear(width, 2)
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
        background, *logits = self.patch_head(patches).split([1, *map(len, PATCH_WORDS.values())], dim=-1)
        logits[0] = torch.cat([logits[0], background], dim=-1)  # the last kind
        losses = [_cross_entropy(logit, targets[name]) for name, logit in zip(PATCH_WORDS, logits, strict=True)]
        is_thing = ~offset.isnan()
        distance = F.smooth_l1_loss(self.offset_head(patches).float()[is_thing], offset[is_thing])
        return torch.stack([*losses, distance]).sum()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=NOTHING)


def pretrain_tower(checkpoint: Path, num_pictures: int, seed: int, **overrides: Any) -> None:
    """Train the vision tower of a LLaVA checkpoint in place; ``overrides`` are TrainingArguments."""
    model = _load(checkpoint)
    _train(model, LinearHead(model.config.vision_config.hidden_size), checkpoint, range(num_pictures), seed, overrides)
    model.save_pretrained(checkpoint)


def align_words(checkpoint: Path, num_pictures: int, seed: int, **overrides: Any) -> None:
    """Train tower, projector and word embeddings together on further pictures, and copy the embeddings to the head."""
    model = _load(checkpoint)
    embeddings = model.get_input_embeddings()
    nn.init.normal_(embeddings.weight, std=embeddings.embedding_dim**-0.5)
    head = WordHead(model.model.multi_modal_projector, embeddings, AutoTokenizer.from_pretrained(checkpoint))
    slower = {"learning_rate": 8e-4, **overrides}
    _train(model, head, checkpoint, range(num_pictures, 2 * num_pictures), seed, slower)
    model.lm_head.weight.data.copy_(embeddings.weight)
    model.save_pretrained(checkpoint)


def _load(checkpoint: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=SDPA_FLOAT32
    )


def _train(
    model: LlavaForConditionalGeneration, head: nn.Module, checkpoint: Path, pictures: range, seed: int, overrides: Any
) -> None:
    tower = model.model.vision_tower
    dataset = SceneDataset(pictures, seed, AutoImageProcessor.from_pretrained(checkpoint), tower.config.patch_size)
    torch.manual_seed(seed)
    attribute_model = AttributeModel(tower, model.config.vision_feature_layer, head)
    arguments = TrainingArguments(**{**_TRAINING, "output_dir": str(checkpoint), "seed": seed, **overrides})
    Trainer(model=attribute_model, args=arguments, train_dataset=dataset).train()


_TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 64,
    "learning_rate": 1.2e-3,
    "warmup_steps": 200,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.05,
    "bf16": True,
    "use_cpu": True,
    "dataloader_num_workers": 1,
    "save_strategy": "no",
    "logging_steps": 50,
    "report_to": "none",
    "remove_unused_columns": False,
}
