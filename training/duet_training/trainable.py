"""Loads the model and sets ``requires_grad`` on the parts that the configuration lists."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from duet_training import attention as attention  # registers sdpa_float32
from duet_training.arguments import ConfigError, DuetArguments
from duet_training.modeling import DuetLlava

_DECODER_PROJECTIONS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
_TOWER = r".*vision_tower.*"  # its projections have the same names


def load_model(duet: DuetArguments) -> DuetLlava:
    """Load the checkpoint. Only the parts that ``duet.train`` lists get gradients.

    Raises:
        ConfigError: if the checkpoint is not a LLaVA with a CLIP tower and a Llama decoder.
    """
    dtype = getattr(torch, duet.dtype)
    try:
        model = DuetLlava.from_pretrained(duet.model, dtype=dtype, attn_implementation=duet.attention)
    except ValueError as error:
        raise ConfigError(f"model is {duet.model!r}, which cannot be trained: {error}") from error
    if duet.boundaries is not None:
        model.boundaries = duet.boundaries
    if duet.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    model.requires_grad_(False)
    for module in chain.from_iterable(_modules(model, part) for part in duet.train):
        module.requires_grad_(True)
    return model


def _modules(model: DuetLlava, part: str) -> list[nn.Module]:
    """The part's modules that the forward runs. Tower layers after the feature layer would never get gradients."""
    tower, num_layers = model.model.vision_tower, model.num_tower_layers
    parts: dict[str, list[nn.Module]] = {
        "tower": [tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:num_layers]],
        "projector": [model.model.multi_modal_projector],
        "language_model": [model.model.language_model, model.lm_head],
    }
    return parts[part]


def adapted(model: DuetLlava, lora: Mapping[str, Any]) -> Any:
    """``model`` with low-rank adapters on its decoder. If the projector is trained, its own weights are.

    Trained weights are float32, even if the others are not.

    Raises:
        ConfigError: if PEFT is missing, or does not know an argument.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ConfigError("lora needs PEFT: pip install 'duet-server[train]'") from None
    trains_projector = any(weight.requires_grad for weight in model.model.multi_modal_projector.parameters())
    saved = [*lora.get("modules_to_save", ()), *(["multi_modal_projector"] if trains_projector else [])]
    try:
        modules = {"target_modules": _DECODER_PROJECTIONS, "exclude_modules": _TOWER}
        config = LoraConfig(**{**modules, **lora, "modules_to_save": saved or None})
    except TypeError as error:
        raise ConfigError(f"lora is {dict(lora)}, which PEFT rejects: {error}") from error
    adapters = get_peft_model(model, config)
    for weight in adapters.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapters
