"""The families of models that the general oracle knows: what their towers make of a picture."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.checkpoints.internvl import CHAT_IMAGE_TOKEN_ID, HF_FOLDER
from tests.oracle.general import Encoded, Oracle, received


@contextmanager
def seen_by(module: Any):
    """Arguments and output of the module's calls in the ``with`` block."""
    calls: list[tuple[tuple, dict, Any]] = []
    hook = module.register_forward_hook(
        lambda _m, args, kwargs, out: calls.append((args, kwargs, out)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


class QwenOracle(Oracle):
    """Qwen2-VL and Qwen3-VL. A token is made of 2 x 2 patches; its score is the mean of theirs."""

    keeps_positions = True

    def encode(self, image: Image.Image) -> list[Encoded]:
        tower = self.model.model.visual
        inputs = self.processor.image_processor(images=[image], return_tensors="pt")
        _, num_rows, num_columns = inputs["image_grid_thw"][0].tolist()
        merge = tower.spatial_merge_size
        attention = self._last_global_block(tower).attn
        with seen_by(attention.qkv) as projected, seen_by(attention) as attended:
            features = self.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        levels = [torch.cat(list(level)) for level in getattr(features, "deepstack_features", None) or ()]
        rows = torch.cat([torch.cat(list(features.pooler_output)), *levels], dim=1)
        query, key, _ = projected[0][2].unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision
        query, key = rotate(query, key, *attended[0][1]["position_embeddings"])
        order = self._raster_order(tower, num_rows // merge, num_columns // merge)
        score = received(query, key).view(-1, merge**2).mean(dim=1)[order]
        metric = key.unflatten(0, (-1, merge**2)).mean(dim=(1, 2))[order]
        return [Encoded(rows, score, metric, (num_rows // merge, num_columns // merge))]

    def _last_global_block(self, tower: Any) -> Any:
        return tower.blocks[-1]

    def _raster_order(self, tower: Any, rows: int, columns: int) -> Tensor:
        """For each token in raster order, its place in the order of the tower."""
        return torch.arange(rows * columns)


class Qwen25Oracle(QwenOracle):
    """Qwen2.5-VL: its tower goes through the picture window by window."""

    def _last_global_block(self, tower: Any) -> Any:
        return tower.blocks[max(tower.fullatt_block_indexes)]

    def _raster_order(self, tower: Any, rows: int, columns: int) -> Tensor:
        side = tower.window_size // tower.patch_size // tower.spatial_merge_size
        by_window = sorted(
            range(rows * columns), key=lambda p: (p // columns // side, p % columns // side, p // columns, p % columns)
        )
        return torch.tensor(by_window).argsort()


class LlavaOracle(Oracle):
    """LLaVA. It cuts before the projector.

    The score is the attention that the class token pays in the selected layer; of a SigLIP tower, which has none, the
    attention that a patch receives.
    """

    def encode(self, image: Image.Image) -> list[Encoded]:
        model, config = self.model.model, self.model.config
        pixels = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        tower = getattr(model.vision_tower, "vision_model", model.vision_tower)
        layers = tower.encoder.layers
        attention = layers[config.vision_feature_layer % (len(layers) + 1) - 1].self_attn
        with seen_by(attention.q_proj) as queries, seen_by(attention.k_proj) as keys:
            outputs = model.vision_tower(pixels, output_hidden_states=True)
        query, key = (calls[0][2][0].unflatten(-1, (attention.num_heads, -1)) for calls in (queries, keys))
        side = config.vision_config.image_size // config.vision_config.patch_size
        hidden = outputs.hidden_states[config.vision_feature_layer][0]
        if config.vision_config.model_type == "siglip_vision_model":
            return [Encoded(hidden, received(query, key), key.mean(dim=1), (side, side))]
        logits = torch.einsum("hd,khd->hk", query[0], key) * query.shape[-1] ** -0.5
        score = logits.softmax(dim=-1).sum(dim=0)[1:]
        return [Encoded(hidden[1:], score, key[1:].mean(dim=1), (side, side), hidden[0])]

    def finish(self, rows: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector(rows[None])[0]


class InternVLOracle(Oracle):
    """InternVL in Hugging Face's format: tiles, scored by the class token's attention; cut behind the projector."""

    @property
    def image_token_id(self) -> int:
        return self.processor.image_token_id

    @property
    def around_image(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (self.processor.start_image_token_id,), (self.processor.end_image_token_id,)

    def tiles(self, image: Image.Image) -> Tensor:
        """Pixels of each tile, and of a small view behind them if there are several, ``[tiles, 3, side, side]``."""
        return self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]

    def encode(self, image: Image.Image) -> list[Encoded]:
        model, pixels = self.model.model, self.tiles(image)
        attention = model.vision_tower.encoder.layer[-1].attention
        with seen_by(attention.q_norm) as queries, seen_by(attention.k_norm) as keys:
            tiles = model.get_image_features(
                pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
            ).pooler_output
        query, key = (calls[0][2].unflatten(-1, (attention.num_heads, -1)) for calls in (queries, keys))
        logits = torch.einsum("bhd,bkhd->bhk", query[:, 0], key) * query.shape[-1] ** -0.5
        score, metric = logits.softmax(dim=-1).sum(dim=1)[:, 1:], key[:, 1:].mean(dim=2)
        side = round(score.shape[1] ** 0.5)
        return [
            Encoded(rows, _of_four(tile_score, side), _of_four(tile_metric, side), (side // 2, side // 2))
            for rows, tile_score, tile_metric in zip(tiles, score, metric, strict=True)
        ]


class InternVLChatOracle(InternVLOracle):
    """The original format, by a checkpoint with the same weights in Hugging Face's. Tiles fit exactly, with no view."""

    def __init__(self, checkpoint: Any) -> None:
        super().__init__(checkpoint / HF_FOLDER)

    @property
    def image_token_id(self) -> int:
        return CHAT_IMAGE_TOKEN_ID

    def tiles(self, image: Image.Image) -> Tensor:
        side = self.model.config.vision_config.image_size[0]
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
        pixels = ((torch.tensor(np.asarray(image)) / 255 - mean) / std).float()
        grid = pixels.unflatten(0, (-1, side)).unflatten(2, (-1, side))  # rows of tiles, y, columns of tiles, x, color
        return grid.permute(0, 2, 4, 1, 3).flatten(0, 1)


def _of_four(patches: Tensor, side: int) -> Tensor:
    """The mean of 2 x 2 patches, by token in raster order."""
    squares = patches.view(side // 2, 2, side // 2, 2, -1)
    return squares.mean(dim=(1, 3)).flatten(0, 1).squeeze(-1)
