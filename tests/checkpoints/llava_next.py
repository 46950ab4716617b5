"""A tiny LLaVA-NeXT checkpoint: a CLIP tower on a small view of the whole picture and on tiles of a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from tests.checkpoints.common import byte_tokenizer, save
from tests.checkpoints.llava import CHAT_TEMPLATE, DECODERS, IMAGE_TOKEN_ID, SPECIAL, TEXT, _as_published

PATCH, SIDE = 14, 4  # pixels of a patch, patches of a tile's side
GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1))  # rows and columns of tiles


def write_llava_next(directory: Path, decoder: str = "mistral") -> Path:
    """Write a checkpoint with one of LLaVA's ``DECODERS``; returns ``directory``."""
    tile = SIDE * PATCH
    pinpoints = [[rows * tile, columns * tile] for rows, columns in GRIDS]
    vision: dict[str, Any] = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": tile,
        "patch_size": PATCH,
    }
    config = LlavaNextConfig(
        vision_config=vision,
        text_config={"model_type": decoder, **TEXT, **DECODERS[decoder]},
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=pinpoints,
        image_seq_length=SIDE**2,
        tie_word_embeddings=False,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}, image_grid_pinpoints=pinpoints
        ),
        tokenizer=byte_tokenizer(SPECIAL, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
    return save(directory, LlavaNextForConditionalGeneration(config), processor, _as_published)
