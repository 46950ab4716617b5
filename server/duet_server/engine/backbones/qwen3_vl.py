"""Qwen3-VL, dense and with experts: as Qwen2-VL, and features of earlier layers of the tower (DeepStack)."""

from typing import Any

from duet_server.engine.backbones.qwen2_vl import Qwen2VL, image_shape
from duet_server.plan import VisionShape


class Qwen3VL(Qwen2VL):
    """A visual row holds the token's own embedding and those of its DeepStack levels; stage 1 cuts whole rows.

    The decoder adds a level behind each of its first layers, to all tokens: none may drop before.
    """

    positions_factor = 1

    def first_boundary(self, hf_config: Any) -> int:
        return max(1, len(hf_config.vision_config.deepstack_visual_indexes))

    def vision_shape(self, hf_config: Any) -> VisionShape:
        vision = hf_config.vision_config
        num_mergers = 1 + len(vision.deepstack_visual_indexes)
        return image_shape(vision, vision.hidden_size, vision.intermediate_size, vision.out_hidden_size, num_mergers)

    def embedding_size(self, model: Any) -> int:
        size: int = model.visual_dim + (model.multiscale_dim if model.use_deepstack else 0)
        return size
