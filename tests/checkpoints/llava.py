"""Tiny LLaVA checkpoints with other towers and decoders than LLaVA-1.5's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from tests.checkpoints.common import byte_tokenizer, save

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
IMAGE_TOKEN_ID = SPECIAL.index("<image>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'].upper() }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PATCH, SIDE = 14, 8  # pixels of a patch, patches of a side
TEXT: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
}
# Mistral's own default is a window, which the engine refuses.
DECODERS = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False},
}
TOWERS = {"clip": ("clip_vision_model", "default", 1), "siglip": ("siglip_vision_model", "full", 0)}


def write_llava(directory: Path, tower: str, decoder: str) -> Path:
    """Write a checkpoint with one of ``TOWERS`` and one of ``DECODERS``; returns ``directory``."""
    model_type, strategy, num_cls = TOWERS[tower]
    vision = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": SIDE * PATCH,
        "patch_size": PATCH,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": decoder, **TEXT, **DECODERS[decoder]},
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        image_seq_length=SIDE**2,
    )
    size = {"height": SIDE * PATCH, "width": SIDE * PATCH}
    image_processor = (
        CLIPImageProcessor(size={"shortest_edge": SIDE * PATCH}, crop_size=size)
        if tower == "clip"
        else SiglipImageProcessor(size=size)
    )
    tokenizer = byte_tokenizer(SPECIAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=num_cls,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
    return save(directory, LlavaForConditionalGeneration(config), processor, _as_published)


def _as_published(name: str, weight: torch.Tensor) -> tuple[str, torch.Tensor]:
    if "vision_model" not in name:
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name, weight
