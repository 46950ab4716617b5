"""InternVL 2 to 3.5, in Hugging Face's format and in the original one: tiles, InternViT, any of its decoders."""

from collections.abc import Sequence
from typing import Any

import torch

from duet_server.engine.backbones.backbone import Backbone, flat_range
from duet_server.engine.backbones.decoder import Decoder
from duet_server.engine.tap import Tap, class_attention
from duet_server.plan import Unit, VisionShape
from duet_server.plan.units import Grid

INTERNLM2 = Decoder(attention="attention", norm="attention_norm")


class InternVL(Backbone):
    """The tower has a class token, by whose attention patches are scored. It does not enter the language model.

    Pixel shuffle makes one token of 2 x 2 patches. Stage 1 cuts behind the projector.
    """

    unit_name = "tile"
    overview = -1
    pixels = "pixel_values"

    def variant(self, hf_config: Any) -> "InternVL":
        if "InternLM2ForCausalLM" not in (hf_config.get_text_config().architectures or ()):
            return self
        backbone = type(self)()
        backbone.decoder = INTERNLM2
        return backbone

    def vision_shape(self, hf_config: Any) -> VisionShape:
        vision, patches_per_token = hf_config.vision_config, round(hf_config.downsample_ratio**-2)
        joined, out = vision.hidden_size * patches_per_token, hf_config.get_text_config().hidden_size
        return VisionShape(
            num_patches=None,
            has_cls=False,
            num_layers=vision.num_hidden_layers,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            patch_size=_one(vision.patch_size),
            image_size=0,
            patches_per_token=patches_per_token,
            projector=((joined, out), (out, out)),
            projects_all=True,
        )

    def grids(self, hf_config: Any, modality: str, item: Any) -> list[Grid]:
        vision = hf_config.vision_config
        image_size = getattr(hf_config, "force_image_size", None) or vision.image_size
        side = round(_one(image_size) // _one(vision.patch_size) * hf_config.downsample_ratio)
        return [(side, side)] * int(item["image_num_patches"].data)

    def tapped(self, model: Any) -> tuple[Any, str]:
        return model.vision_tower.encoder.layer[-1].attention, "attn"

    def select(self, inputs: dict[str, Any], items: Sequence[Sequence[Unit]], start: int, end: int) -> dict[str, Any]:
        tiles = flat_range([len(item) for item in items], start, end)
        counts = inputs["image_num_patches"][start:end]
        return {**inputs, self.pixels: inputs[self.pixels][tiles], "image_num_patches": counts}

    def score(
        self, model: Any, tap: Tap, inputs: dict[str, Any], units: Sequence[Unit]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        score, metric = class_attention(tap)
        return _by_token(model, score[..., None]).flatten(), _by_token(model, metric[:, 1:]).flatten(0, 1)


class InternVLChat(InternVL):
    """The original format."""

    pixels = "pixel_values_flat"

    def tapped(self, model: Any) -> tuple[Any, str]:
        return model.vision_model.encoder.layers[-1].attn, "attn"


def _by_token(model: Any, patches: torch.Tensor) -> torch.Tensor:
    """The mean over the patches of each token: ``[tiles, patches, any]`` to ``[tiles, tokens, any]``."""
    side, size = round(patches.shape[1] ** 0.5), patches.shape[2]
    shuffled = model.pixel_shuffle(patches.unflatten(1, (side, side)), scale_factor=model.downsample_ratio)
    return shuffled.flatten(1, 2).unflatten(2, (-1, size)).mean(dim=2)


def _one(size: Any) -> int:
    """A side of a square, which some configurations give twice."""
    return int(size) if isinstance(size, int) else int(size[0])
