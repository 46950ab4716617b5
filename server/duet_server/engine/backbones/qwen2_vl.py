"""Qwen2-VL and Qwen2.5-VL: images of any size, positions of three axes. Stage 1 cuts behind the tower's merger."""

from collections.abc import Sequence
from typing import Any

import torch

from duet_server.engine.backbones.backbone import Backbone, flat_range
from duet_server.engine.backbones.decoder import Decoder
from duet_server.engine.tap import Tap, received_attention
from duet_server.plan import Unit, VisionShape
from duet_server.plan.units import Grid


class Qwen2VL(Backbone):
    """All layers of the tower attend to the whole image. Its patches come in groups that the merger joins."""

    decoder = Decoder(positions="kept")
    positions_factor = 4  # positions of vLLM's rotary embedding, as a multiple of the model's own number

    def max_positions(self, hf_config: Any) -> int | None:
        most: int = hf_config.get_text_config().max_position_embeddings
        return self.positions_factor * most

    def vision_shape(self, hf_config: Any) -> VisionShape:
        vision = hf_config.vision_config
        return image_shape(vision, vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio), vision.hidden_size)

    def grids(self, hf_config: Any, modality: str, item: Any) -> list[Grid]:
        num_frames, rows, columns = item[f"{modality}_grid_thw"].data.tolist()
        merge = hf_config.vision_config.spatial_merge_size
        return [(rows // merge, columns // merge)] * num_frames

    def tapped(self, model: Any) -> tuple[Any, str]:
        return model.visual.blocks[-1].attn, "attn"

    def select(self, inputs: dict[str, Any], items: Sequence[Sequence[Unit]], start: int, end: int) -> dict[str, Any]:
        num_patches = [int(grid.prod()) for grid in inputs["image_grid_thw"]]
        patches = inputs["pixel_values"][flat_range(num_patches, start, end)]
        return {**inputs, "pixel_values": patches, "image_grid_thw": inputs["image_grid_thw"][start:end]}

    def score(
        self, model: Any, tap: Tap, inputs: dict[str, Any], units: Sequence[Unit]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return received_attention(tap, [unit.num_tokens for unit in units], model.visual.spatial_merge_size**2)


class Qwen25VL(Qwen2VL):
    """Some layers of the tower attend to windows, in whose order its tokens pass."""

    is_proven = True

    def vision_shape(self, hf_config: Any) -> VisionShape:
        vision = hf_config.vision_config
        return image_shape(
            vision,
            vision.hidden_size,
            vision.intermediate_size,
            vision.out_hidden_size,
            num_global_layers=len(vision.fullatt_block_indexes),
            patches_per_window=(vision.window_size // vision.patch_size) ** 2,
            is_gated=True,
        )

    def tapped(self, model: Any) -> tuple[Any, str]:
        return model.visual.blocks[max(model.visual.fullatt_block_indexes)].attn, "attn"

    def score(
        self, model: Any, tap: Tap, inputs: dict[str, Any], units: Sequence[Unit]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        score, metric = super().score(model, tap, inputs, units)
        order = model.visual.prepare_encoder_metadata(inputs["image_grid_thw"].tolist())["reverse_indices"]
        return score[order], metric[order]


def image_shape(
    vision: Any, hidden_size: int, intermediate_size: int, out_size: int, num_mergers: int = 1, **fields: Any
) -> VisionShape:
    """The sizes of a tower of Qwen's; each merger has two layers and runs on all tokens."""
    joined = hidden_size * vision.spatial_merge_size**2
    return VisionShape(
        num_patches=None,
        has_cls=False,
        num_layers=vision.depth,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        patch_size=vision.patch_size,
        image_size=0,
        patches_per_token=vision.spatial_merge_size**2,
        frames_per_patch=vision.temporal_patch_size,
        projector=((joined, joined), (joined, out_size)) * num_mergers,
        projects_all=True,
        **fields,
    )
