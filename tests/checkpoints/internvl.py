"""A tiny InternVL checkpoint in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from tests.checkpoints.common import byte_tokenizer, save
from tests.checkpoints.llava import DECODERS, TEXT

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>")
IMAGE_TOKEN_ID = SPECIAL.index("<IMG_CONTEXT>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<IMG_CONTEXT>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, SIDE = 14, 8  # pixels of a patch, patches of a tile's side


def write_internvl(directory: Path, decoder: str, *, use_qk_norm: bool) -> Path:
    """Write a checkpoint with one of LLaVA's ``DECODERS``; returns ``directory``."""
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "attention_bias": True,
        "use_qk_norm": use_qk_norm,
        "image_size": [SIDE * PATCH] * 2,
        "patch_size": [PATCH] * 2,
    }
    text = {"model_type": decoder, **TEXT, **DECODERS[decoder], "vocab_size": len(SPECIAL) + 256, "bos_token_id": 0}
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN_ID,
        image_seq_length=(SIDE // 2) ** 2,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    size = {"height": SIDE * PATCH, "width": SIDE * PATCH}
    tokenizer = byte_tokenizer(
        SPECIAL,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=(SIDE // 2) ** 2,
        chat_template=CHAT_TEMPLATE,
    )
    return save(directory, InternVLForConditionalGeneration(config), processor)
