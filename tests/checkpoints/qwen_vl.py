"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.checkpoints.common import byte_tokenizer, save

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IMAGE_TOKEN_ID = SPECIAL.index("<|image_pad|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH = 14
TEXT: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def write_qwen_vl(directory: Path, name: str) -> Path:
    """Write the checkpoint of one of ``NAMES``; returns ``directory``."""
    config = _config(name)
    model_class = getattr(transformers, f"{_CLASSES[name]}ForConditionalGeneration")
    processor_class = getattr(transformers, f"{_CLASSES[name].removesuffix('Moe')}Processor")
    sizes = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    video = (Qwen3VLVideoProcessor if name.startswith("qwen3") else Qwen2VLVideoProcessor)(**sizes)
    image = Qwen2VLImageProcessor(**sizes, min_pixels=(2 * PATCH) ** 2, max_pixels=80 * (2 * PATCH) ** 2)
    tokenizer = byte_tokenizer(
        SPECIAL,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )
    processor = processor_class(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )
    return save(directory, model_class(config), processor, _as_published)


_CLASSES = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}


def _as_published(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    return name, weight.transpose(1, 2) if ".experts." in name else weight


def _config(name: str) -> Any:
    text, vision = dict(TEXT), _vision(name)
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    if name.startswith("qwen3"):
        text["head_dim"] = 32
        rotary |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    else:
        text["num_attention_heads"], text["num_key_value_heads"] = 2, 1
        rotary |= {"mrope_section": [4, 6, 6]}
    if name == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    config_class = getattr(transformers, f"{_CLASSES[name]}Config")
    ids = {
        "image_token_id": IMAGE_TOKEN_ID,
        "video_token_id": SPECIAL.index("<|video_pad|>"),
        "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
        "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
    }
    return config_class(
        text_config=text | {"rope_parameters": rotary}, vision_config=vision, tie_word_embeddings=False, **ids
    )


def _vision(name: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {"depth": 4, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2}
    sizes |= {"temporal_patch_size": 2}
    if name == "qwen2_vl":
        return sizes | {"embed_dim": 64, "hidden_size": TEXT["hidden_size"], "mlp_ratio": 2}
    sizes |= {"hidden_size": 64, "intermediate_size": 96, "out_hidden_size": TEXT["hidden_size"]}
    if name == "qwen2_5_vl":
        return sizes | {"window_size": 4 * PATCH, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}
    return sizes | {"num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1, 2]}
