"""Qwen3-VL-8B's shape with pictures of 1,024 visual tokens, and a small one with a similar share of tower FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from duet_server.engine.backbones.qwen3_vl import Qwen3VL
from duet_server.plan import DecoderShape, ModelShape, default_boundaries

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IMAGE_TOKEN = SPECIAL_TOKENS.index("<|image_pad|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 16, 2  # pixels of a patch, patches of a token's side
SIDE = 32  # visual tokens of a picture's side


@dataclass(frozen=True, slots=True)
class Qwen3VLModel:
    """A Qwen3-VL of these sizes."""

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    dtype: str
    picture_size: int = SIDE * PATCH * MERGE
    image_token: int = IMAGE_TOKEN

    @property
    def config(self) -> Qwen3VLConfig:
        return Qwen3VLConfig(
            architectures=["Qwen3VLForConditionalGeneration"],
            vision_config={**self.vision, "out_hidden_size": self.text["hidden_size"], "patch_size": PATCH},
            text_config={
                **self.text,
                "max_position_embeddings": 8192,
                "rope_parameters": self.rope_parameters,
                "bos_token_id": 0,
                "eos_token_id": 2,
            },
            image_token_id=IMAGE_TOKEN,
            video_token_id=SPECIAL_TOKENS.index("<|video_pad|>"),
            vision_start_token_id=SPECIAL_TOKENS.index("<|vision_start|>"),
            vision_end_token_id=SPECIAL_TOKENS.index("<|vision_end|>"),
            tie_word_embeddings=False,
        )

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The three axes share a head's frequencies by 6 : 5 : 5. vLLM reads past the end if there are fewer."""
        sections = [self.text["head_dim"] * part // 32 for part in (6, 5, 5)]
        rotary = {"rope_type": "default", "rope_theta": 5e6}
        return {**rotary, "mrope_section": sections, "mrope_interleaved": True}

    @property
    def shape(self) -> ModelShape:
        config, backbone = self.config, Qwen3VL()
        decoder = DecoderShape.of(config.text_config)
        boundaries = default_boundaries(decoder.num_layers, backbone.first_boundary(config))
        return ModelShape(decoder, backbone.vision_shape(config), boundaries).at(SIDE**2)

    def write_checkpoint(self, directory: Path) -> Path:
        sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
        processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(
                **sizes, min_pixels=(PATCH * MERGE) ** 2, max_pixels=self.picture_size**2
            ),
            tokenizer=_tokenizer(),
            video_processor=Qwen3VLVideoProcessor(**sizes),
            chat_template=CHAT_TEMPLATE,
        )
        self.config.save_pretrained(directory)
        processor.save_pretrained(directory)
        return directory.resolve()


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, behind the special tokens; ids above decode to an empty string."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: idx for idx, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )


# 1/29 of the large model's FLOPs. The tower takes 27 % of the prefill FLOPs in both.
SMALL_QWEN3_VL = Qwen3VLModel(
    vision={
        "hidden_size": 128,
        "intermediate_size": 512,
        "depth": 18,
        "num_heads": 1,  # the wider a head, the less of its time goes into exponentials on a CPU
        "deepstack_visual_indexes": [5, 10, 15],
    },
    text={
        "hidden_size": 896,
        "intermediate_size": 2688,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": len(SPECIAL_TOKENS) + 256,
    },
    dtype="float32",
)
QWEN3_VL_8B = Qwen3VLModel(
    vision={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "depth": 27,
        "num_heads": 16,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    text={
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    dtype="bfloat16",
)
