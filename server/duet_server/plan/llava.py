"""The shape that plans need, read from a Hugging Face ``LlavaConfig``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duet_server.plan.shape import DecoderShape, ModelShape, VisionShape


def check_llava(config: Any) -> None:
    """Raise ValueError for a ``LlavaConfig`` whose tower stage 1 cannot read."""
    tower = config.vision_config.model_type
    if tower != "clip_vision_model":
        raise ValueError(f"DUET serves LLaVA with a CLIP tower, not {tower}")
    if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != "default":
        raise ValueError("DUET needs a single vision_feature_layer and vision_feature_select_strategy 'default'")


def num_tower_layers(config: Any) -> int:
    """How many layers of the tower run, up to ``vision_feature_layer``.

    ``vision_feature_layer`` is an index into the hidden states. Hidden state 0 is the embedding, and ``-1`` is the
    output of the last layer.
    """
    layer: int = config.vision_feature_layer
    return layer if layer >= 0 else int(config.vision_config.num_hidden_layers) + 1 + layer


def llava_shape(config: Any, boundaries: Sequence[int]) -> ModelShape:
    """The shape of a Hugging Face ``LlavaConfig``."""
    return ModelShape(DecoderShape.of(config.text_config), vision_shape(config), tuple(boundaries))


def vision_shape(config: Any) -> VisionShape:
    """The sizes of the tower of a Hugging Face ``LlavaConfig``."""
    vision = config.vision_config
    return VisionShape(
        num_patches=(vision.image_size // vision.patch_size) ** 2,
        has_cls=vision.model_type == "clip_vision_model",
        num_layers=num_tower_layers(config),
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
    )
