"""LLaVA-1.5-7B's shape, and a small one with a similar share of tower FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import LlavaConfig

from duet_server.plan import ModelShape, default_boundaries, llava_shape
from duet_training import random_llava


@dataclass(frozen=True, slots=True)
class LlavaModel:
    """A LLaVA of these sizes."""

    vision: random_llava.Sizes
    text: random_llava.Sizes
    dtype: str
    image_token: int = random_llava.SPECIAL_TOKENS.index("<image>")

    @property
    def picture_size(self) -> int:
        size: int = self.vision["image_size"]
        return size

    @property
    def shape(self) -> ModelShape:
        config = LlavaConfig(vision_config=dict(self.vision), text_config=dict(self.text))
        return llava_shape(config, default_boundaries(self.text["num_hidden_layers"]))

    def write_checkpoint(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        return random_llava.write_llava_without_weights(directory.resolve(), self.vision, self.text)


# 1/80 of the large model's FLOPs. The tower takes 4.6 % of the prefill FLOPs, and 4.2 % in the large model.
SMALL = LlavaModel(
    vision={
        **random_llava.TOWER_SIZES,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 5,  # LLaVA runs all except the last
        "num_attention_heads": 4,
        "projection_dim": 256,
    },
    # 78M parameters.
    text={
        **random_llava.DECODER_SIZES,
        "hidden_size": 768,
        "intermediate_size": 1792,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
    dtype="float32",
)
LLAVA_7B = LlavaModel(
    vision={
        **random_llava.TOWER_SIZES,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
    },
    text={
        **random_llava.DECODER_SIZES,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,  # the tokenizer has fewer; ids above decode to an empty string
        "torch_dtype": "bfloat16",
    },
    dtype="bfloat16",
)
