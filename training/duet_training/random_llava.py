"""LLaVA checkpoints of any size with random weights, for tests and benchmarks. Their answers are random text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)  # one token per byte
_TEMPLATE_OF_PARTS = (
    "{{{{ bos_token }}}}{{% for m in messages %}}{{{{ m['role'].upper() }}}}: "
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}{parts}{{% endif %}}"
    "{{% if m['role'] == 'assistant' %}}{{{{ eos_token }}}}{{% else %}} {{% endif %}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}ASSISTANT:{{% endif %}}"
)
# A turn's parts in the order in which the client sent them.
TEMPLATE_IN_ORDER = _TEMPLATE_OF_PARTS.format(
    parts="{% for c in m['content'] %}{% if c['type'] in ('image', 'image_url') %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
)
# A turn's images first, as published LLaVA-1.5 checkpoints have them.
TEMPLATE_IMAGES_FIRST = _TEMPLATE_OF_PARTS.format(
    parts="{% for c in m['content'] if c['type'] in ('image', 'image_url') %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
)

Sizes = Mapping[str, Any]

# A small LLaVA-1.5: 336 pixels, 576 patches, a tower with CLS.
TOWER_SIZES: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
DECODER_SIZES: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}


def write_llava(
    directory: Path, vision: Sizes, text: Sizes, *, seed: int = 0, config: Mapping[str, Any] | None = None
) -> Path:
    """Write a LLaVA checkpoint of these sizes with random weights and a byte tokenizer; returns ``directory``.

    Args:
        directory: an existing directory.
        vision: ``vision_config`` of its ``config.json``, a CLIP tower.
        text: ``text_config``, a Llama with ``VOCAB_SIZE`` tokens.
        seed: the seed of the weights.
        config: further entries of ``config.json``.
    """
    write_llava_without_weights(directory, vision, text, config=config)
    weights = _weights(torch.Generator().manual_seed(seed), _tokenizer(), vision, text)
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    return directory


def write_llava_without_weights(
    directory: Path,
    vision: Sizes,
    text: Sizes,
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    chat_template: str = TEMPLATE_IN_ORDER,
) -> Path:
    """Like ``write_llava``, but without weights, which vLLM makes up with ``--load-format dummy``. Any vocabulary fits.

    ``tokenizer`` must start with ``SPECIAL_TOKENS``; the default is the byte tokenizer.
    """
    for name, content in _json_files(vision, text, config or {}, chat_template).items():
        (directory / name).write_text(json.dumps(content, indent=1))
    (directory / "tokenizer.json").write_text((tokenizer or _tokenizer()).to_str())
    (directory / "chat_template.jinja").write_text(chat_template)
    directory.chmod(0o755)
    return directory


def _json_files(vision: Sizes, text: Sizes, config: Mapping[str, Any], chat_template: str) -> dict[str, dict[str, Any]]:
    image_size = vision["image_size"]
    special = {token: token for token in SPECIAL_TOKENS}
    return {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            **config,
            "image_token_index": SPECIAL_TOKENS.index("<image>"),
            "projector_hidden_act": "gelu",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "torch_dtype": "float32",
            "tie_word_embeddings": False,
            "text_config": text,
            "vision_config": vision,
        },
        # A random answer has no natural end: if the client gives no limit, it has this many tokens.
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "max_new_tokens": 64},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_resize": True,
            "size": {"shortest_edge": image_size},
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "do_convert_rgb": True,
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": vision["patch_size"],
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaProcessor",
            "unk_token": special["<unk>"],
            "bos_token": special["<s>"],
            "eos_token": special["</s>"],
            "pad_token": special["<pad>"],
            "additional_special_tokens": [special["<image>"]],
            "clean_up_tokenization_spaces": False,
            "model_max_length": text["max_position_embeddings"],
            "chat_template": chat_template,
        },
    }


def _tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: token_id for token_id, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos = ("<s>", vocab["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[bos])
    return tokenizer


def _weights(generator: torch.Generator, tokenizer: Tokenizer, vision: Sizes, text: Sizes) -> dict[str, torch.Tensor]:
    """Random weights under the names of the published LLaVA checkpoints.

    Hidden dimension 0 of the decoder is 1 for every input, and no layer adds to it. Column 0 of the output head
    therefore acts as a bias: it makes the random text printable and mostly lower case, and lets it end.
    """
    width = text["hidden_size"]
    embedding = _normal(generator, text["vocab_size"], width, scale=1.0)
    embedding[:, 0] = 1.0
    head = _normal(generator, text["vocab_size"], width, scale=0.25)
    head[:, 0] = _printable_bias(tokenizer, text)
    return {
        **_vision_weights(generator, vision),
        **_projector_weights(generator, vision, text),
        "language_model.model.embed_tokens.weight": embedding,
        **{name: weight for idx in range(text["num_hidden_layers"]) for name, weight in _layer(generator, idx, text)},
        "language_model.model.norm.weight": torch.ones(width),
        "language_model.lm_head.weight": head,
    }


def _printable_bias(tokenizer: Tokenizer, sizes: Sizes) -> torch.Tensor:
    """One score per token: high for frequent letters and space, lower for other lower-case letters, ``.,?!`` and EOS.

    All other tokens never occur.
    """
    bias = torch.full((sizes["vocab_size"],), -60.0)
    for token_id in range(len(SPECIAL_TOKENS), sizes["vocab_size"]):
        text = tokenizer.decode([token_id])
        if text in " etaoinshr":
            bias[token_id] = 6.0
        elif text.isascii() and text.islower():
            bias[token_id] = 4.0
        elif text in ".,?!":
            bias[token_id] = 1.0
    bias[sizes["eos_token_id"]] = 0.0
    return bias


def _layer(generator: torch.Generator, layer_idx: int, text: Sizes) -> list[tuple[str, torch.Tensor]]:
    width, inner = text["hidden_size"], text["intermediate_size"]
    head_dim = width // text["num_attention_heads"]
    rows = {
        "self_attn.q_proj": (text["num_attention_heads"] * head_dim, width),
        "self_attn.k_proj": (text["num_key_value_heads"] * head_dim, width),
        "self_attn.v_proj": (text["num_key_value_heads"] * head_dim, width),
        "self_attn.o_proj": (width, text["num_attention_heads"] * head_dim),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    weights = {name: _normal(generator, *shape) for name, shape in rows.items()}
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[name][0] = 0.0
    weights |= {name: torch.ones(width) for name in ("input_layernorm", "post_attention_layernorm")}
    return [(f"language_model.model.layers.{layer_idx}.{name}.weight", weight) for name, weight in weights.items()]


def _projector_weights(generator: torch.Generator, vision: Sizes, text: Sizes) -> dict[str, torch.Tensor]:
    width = text["hidden_size"]
    last, bias = _normal(generator, width, width), torch.zeros(width)
    last[0], bias[0] = 0.0, 1.0
    return {
        "multi_modal_projector.linear_1.weight": _normal(generator, width, vision["hidden_size"]),
        "multi_modal_projector.linear_1.bias": torch.zeros(width),
        "multi_modal_projector.linear_2.weight": last,
        "multi_modal_projector.linear_2.bias": bias,
    }


def _vision_weights(generator: torch.Generator, vision: Sizes) -> dict[str, torch.Tensor]:
    width, inner, patch_size = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    num_positions = (vision["image_size"] // patch_size) ** 2 + 1
    prefix = "vision_tower.vision_model"
    weights = {
        f"{prefix}.embeddings.class_embedding": _normal(generator, width, scale=1.0),
        f"{prefix}.embeddings.patch_embedding.weight": _normal(generator, width, 3, patch_size, patch_size),
        f"{prefix}.embeddings.position_embedding.weight": _normal(generator, num_positions, width, scale=0.3),
        **_norm(f"{prefix}.pre_layrnorm", width),  # the misspelling is part of the published name
        **_norm(f"{prefix}.post_layernorm", width),
    }
    projections = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    projections |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for layer_idx in range(vision["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layers.{layer_idx}"
        weights |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        for name, shape in projections.items():
            weights[f"{layer}.{name}.weight"] = _normal(generator, *shape)
            weights[f"{layer}.{name}.bias"] = torch.zeros(shape[0])
    return weights


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _normal(generator: torch.Generator, *shape: int, scale: float | None = None) -> torch.Tensor:
    """Gaussian weights. With the default scale, a product with them keeps the variance of its input."""
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape, generator=generator) * (fan_in**-0.5 if scale is None else scale)
