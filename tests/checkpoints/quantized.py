"""Checkpoints whose decoder has quantized weights, in the formats of AWQ, GPTQ and compressed-tensors' int8."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32  # inputs that share a scale in AWQ and GPTQ
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns stands in which four bits
_LINEAR = re.compile(r"language_model.*\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")
_WHOLE = ("visual", "lm_head")  # parts of Qwen3-VL that stay as they are

Parts = dict[str, Tensor]  # a layer's tensors by the end of their names
QUANTIZATION: dict[str, dict[str, Any]] = {
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(_WHOLE),
    },
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "dynamic": {f"-:.*{part}.*": {} for part in _WHOLE},
    },
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "ignore": [f"re:.*{part}.*" for part in _WHOLE],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": {
                    "num_bits": 8,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "token",
                    "dynamic": True,
                },
            }
        },
    },
}


def write_quantized(source: Path, directory: Path, method: str) -> Path:
    """Write the checkpoint ``source`` with a quantized decoder; returns ``directory``.

    ``source`` gets the weights that the quantized numbers stand for, so that both are the same model.
    """
    shutil.copytree(source, directory, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION[method]}))
    weights = load_file(source / "model.safetensors")
    quantized = dict(weights)
    for name in filter(_LINEAR.search, weights):
        parts, weights[name] = _FORMATS[method](quantized.pop(name))
        quantized |= {name.removesuffix("weight") + end: part.contiguous() for end, part in parts.items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    save_file(quantized, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _awq(weight: Tensor) -> tuple[Parts, Tensor]:
    """Unsigned numbers of four bits, a zero and a scale for every group of inputs; packed by columns."""
    groups = weight.T.unflatten(0, (-1, GROUP))  # [groups, GROUP, out]
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    scale = _power_of_two((high - low) / 14)
    zero = (-low / scale).round().clamp(0, 15)
    numbers = ((groups / scale).round() + zero).clamp(0, 15)
    columns = lambda rows: _packed(rows.unflatten(-1, (-1, 8))[..., _AWQ_ORDER])  # noqa: E731
    parts = {
        "qweight": columns(numbers.flatten(0, 1)),
        "qzeros": columns(zero.squeeze(1)),
        "scales": scale.squeeze(1).half(),
    }
    return parts, ((numbers - zero) * scale).flatten(0, 1).T.contiguous()


def _gptq(weight: Tensor) -> tuple[Parts, Tensor]:
    """Numbers of four bits around 8, a scale for every group of inputs; packed by rows. Zeros are stored less one."""
    groups = weight.T.unflatten(0, (-1, GROUP))
    scale = _power_of_two(groups.abs().amax(dim=1, keepdim=True) / 7)
    numbers = (groups / scale).round().clamp(-8, 7)
    rows = (numbers + 8).flatten(0, 1).unflatten(0, (-1, 8)).transpose(1, 2)
    parts = {
        "qweight": _packed(rows),
        "qzeros": _packed(torch.full((len(groups), weight.shape[0] // 8, 8), 7)),
        "scales": scale.squeeze(1).half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return parts, (numbers * scale).flatten(0, 1).T.contiguous()


def _int8(weight: Tensor) -> tuple[Parts, Tensor]:
    """A scale for every output."""
    scale = _power_of_two(weight.abs().amax(dim=1, keepdim=True) / 127)
    numbers = (weight / scale).round().to(torch.int8)
    return {"weight": numbers, "weight_scale": scale}, numbers * scale


_FORMATS: dict[str, Callable[[Tensor], tuple[Parts, Tensor]]] = {
    "awq": _awq,
    "gptq": _gptq,
    "int8": _int8,
}


def _power_of_two(scale: Tensor) -> Tensor:
    """At least ``scale``, and exact in every floating-point format."""
    return 2.0 ** scale.log2().ceil()


def _packed(numbers: Tensor) -> Tensor:
    """Eight numbers of four bits along the last axis in one int32."""
    shifted = numbers.long() << torch.arange(0, 32, 4)
    return shifted.sum(dim=-1).to(torch.int32)
