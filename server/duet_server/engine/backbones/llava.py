"""LLaVA-1.5 and its kind: a CLIP or SigLIP tower, any decoder of vLLM's whose layers are like Llama's."""

from collections.abc import Sequence
from typing import Any

import torch

from duet_server.engine.backbones.backbone import Backbone
from duet_server.engine.cut import CutUnit
from duet_server.engine.tap import Tap, class_attention
from duet_server.engine.vllm_internals import VllmConfig
from duet_server.plan import Unit, VisionShape
from duet_server.plan.llava import vision_shape
from duet_server.plan.units import Grid

TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}  # and the feature strategy that fits each


class Llava(Backbone):
    """A CLIP tower. Stage 1 cuts before the projector, and CLS enters first, as in the authors' code."""

    has_cls = True
    in_place = False
    is_proven = True

    def variant(self, hf_config: Any) -> Backbone:
        return LlavaSiglip() if hf_config.vision_config.model_type == "siglip_vision_model" else self

    def check(self, vllm_config: VllmConfig) -> None:
        config = vllm_config.model_config.hf_config
        tower = config.vision_config.model_type
        if tower not in TOWERS:
            raise ValueError(f"DUET serves LLaVA with a tower of {' or '.join(TOWERS)}, not {tower}")
        strategy = config.vision_feature_select_strategy
        if not isinstance(config.vision_feature_layer, int) or strategy != TOWERS[tower]:
            raise ValueError(
                f"DUET needs a single vision_feature_layer and vision_feature_select_strategy {TOWERS[tower]!r} with a "
                f"tower of {tower}, not {config.vision_feature_layer} and {strategy!r}"
            )

    def vision_shape(self, hf_config: Any) -> VisionShape:
        return vision_shape(hf_config)

    def grids(self, hf_config: Any, modality: str, item: Any) -> list[Grid]:
        side = hf_config.vision_config.image_size // hf_config.vision_config.patch_size
        return [(side, side)]

    def max_tokens_per_item(self, info: Any) -> dict[str, int] | None:
        return {"image": info.get_max_image_tokens() + int(self.has_cls)}

    def tapped(self, model: Any) -> tuple[Any, str]:
        return model.vision_tower.vision_model.encoder.layers[-1].self_attn, "attn"

    def encode(self, model: Any, embed: Any, inputs: dict[str, Any]) -> torch.Tensor:
        pixels = model._parse_and_validate_image_input(**inputs)["pixel_values"]
        hidden: torch.Tensor = model.vision_tower(pixels, feature_select_strategy="full")
        return hidden.flatten(0, 1)

    def score(
        self, model: Any, tap: Tap, inputs: dict[str, Any], units: Sequence[Unit]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        score, metric = class_attention(tap)
        return score.flatten(), metric.flatten(0, 1)

    def finish(
        self,
        model: Any,
        inputs: dict[str, Any],
        items: Sequence[Sequence[CutUnit]],
        units: Sequence[Sequence[Unit]],
    ) -> list[torch.Tensor]:
        rows = super().finish(model, inputs, items, units)
        return list(model.multi_modal_projector(torch.cat(rows)).split([len(item) for item in rows]))


class LlavaSiglip(Llava):
    """A SigLIP tower, which has no CLS: stage 1's score is the attention that a patch receives."""

    has_cls = False
    in_place = True
    is_proven = False
    score = Backbone.score
