"""Tiny checkpoints with random weights: a byte tokenizer, and weights whose greedy tokens are far apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

Published = Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]


def byte_tokenizer(special: tuple[str, ...], **options: Any) -> PreTrainedTokenizerFast:
    """One token for each byte, behind the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: idx for idx, token in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=list(special), **options)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Random weights of about unit gain; queries and keys twice that, so that attention is not flat."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "embed_tokens" in name:
            weight.copy_(noise)
        elif weight.ndim > 1:
            gain = 2.0 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
            weight.copy_(noise * gain * weight[0].numel() ** -0.5)
        elif name.endswith("weight"):
            weight.copy_(1 + noise * 0.1)
        else:
            weight.copy_(noise * 0.1)


def save(directory: Path, model: nn.Module, processor: Any, as_published: Published = lambda *entry: entry) -> Path:
    """Write a model with random weights and its processor; returns ``directory``.

    ``as_published`` gives the name and the layout that published checkpoints have for a weight. transformers reads them
    but writes others, and vLLM knows no others.
    """
    randomize(model)
    model.float().eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    path = directory / "model.safetensors"
    weights = dict(as_published(*entry) for entry in load_file(path).items())
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path, metadata={"format": "pt"})
    return directory
