"""Tiny InternVL checkpoints: in Hugging Face's format and in the original one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from tests.checkpoints.common import byte_tokenizer, save
from tests.checkpoints.llava import DECODERS, TEXT

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<pad>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
    "<video>",
    "<image>",
)
IMAGE_TOKEN_ID = SPECIAL.index("<IMG_CONTEXT>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<IMG_CONTEXT>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_IMAGE_TOKEN_ID = SPECIAL.index("<image>")  # what stands for a picture in a prompt of the original format
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


# The original format's chat template knows only texts, so vLLM puts ``<image>`` in front of them. The format also needs
# code of its own: a configuration, which checkpoints bring along.
CHAT_TEXT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_CONFIGURATION = """
from transformers import AutoConfig, PretrainedConfig


class VisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternLM2Config(PretrainedConfig):
    model_type = "internlm2"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    has_no_defaults_at_init = True

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = VisionConfig(**(vision_config or {}))
        llm = dict(llm_config or {"model_type": "qwen2"})
        if llm["model_type"] == "internlm2":
            self.llm_config = InternLM2Config(**llm)
        else:
            self.llm_config = AutoConfig.for_model(llm.pop("model_type"), **llm)
"""
HF_FOLDER = "in_hugging_faces_format"


def write_internvl_chat(directory: Path, decoder: str) -> Path:
    """Write a checkpoint in the original format; one with the same weights in Hugging Face's lies in ``HF_FOLDER``.

    ``decoder`` is one of LLaVA's, or ``internlm2``: a Llama under other names, and with queries, keys and values in one
    matrix.
    """
    source = directory / HF_FOLDER
    source.mkdir()
    is_internlm2 = decoder == "internlm2"
    write_internvl(source, "llama" if is_internlm2 else decoder, use_qk_norm=True)
    theirs = json.loads((source / "config.json").read_text())
    vision, text = theirs["vision_config"], theirs["text_config"]
    if is_internlm2:
        text |= {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]}
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "vision_config": {
            **{
                key: vision[key]
                for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            },
            "image_size": SIDE * PATCH,
            "patch_size": PATCH,
            "qkv_bias": True,
            "qk_normalization": True,
            "norm_type": "layer_norm",
            "layer_norm_eps": vision["layer_norm_eps"],
            "hidden_act": "gelu",
            "initializer_factor": 1.0,
        },
        "llm_config": text,
        "force_image_size": SIDE * PATCH,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": False,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 4,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "configuration_internvl_chat.py").write_text(CHAT_CONFIGURATION)
    (directory / "chat_template.jinja").write_text(CHAT_TEXT_TEMPLATE)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_text((source / name).read_text())
    weights = _as_chat(load_file(source / "model.safetensors"))
    weights = _as_internlm2(weights, text["num_key_value_heads"]) if is_internlm2 else weights
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


_CHAT_NAMES = {
    "multi_modal_projector.layer_norm.": "mlp1.0.",
    "multi_modal_projector.linear_1.": "mlp1.1.",
    "multi_modal_projector.linear_2.": "mlp1.3.",
    "vision_tower.": "vision_model.",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer.": "attn.proj.",
    "attention.q_norm.": "attn.q_norm.",
    "attention.k_norm.": "attn.k_norm.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection.": "embeddings.patch_embedding.",
}


def _as_chat(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under their original names, with queries, keys and values of the tower in one matrix."""
    return _renamed(weights, _CHAT_NAMES, (".attention.q_proj.", ".attn.qkv."), torch.cat)


_INTERNLM2_NAMES = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
    "lm_head": "output",
}


def _as_internlm2(weights: dict[str, torch.Tensor], num_kv_heads: int) -> dict[str, torch.Tensor]:
    """The decoder's weights as InternLM2 names them. Each key head's queries, its keys and its values lie together."""

    def join(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.unflatten(0, (num_kv_heads, -1)) for part in parts], dim=1).flatten(0, 1)

    return _renamed(weights, _INTERNLM2_NAMES, (".self_attn.q_proj.", ".attention.wqkv."), join)


def _renamed(
    weights: dict[str, torch.Tensor],
    names: dict[str, str],
    joined: tuple[str, str],
    join: Callable[[list[torch.Tensor]], torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Weights under other names, with queries, keys and values as one.

    ``joined`` is a part of the name of the queries' weight, then that of the joint weight.
    """
    renamed = {}
    for name, weight in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = weight
    for name in [name for name in renamed if joined[0] in name]:
        parts = [renamed.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        renamed[name.replace(*joined)] = join(parts)
    return renamed
