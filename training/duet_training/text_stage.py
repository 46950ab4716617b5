"""Stage 2 (text to vision) before a Hugging Face Llama layer: keeps the visual tokens that guiding rows attend to most.

Autograd treats the choice as a constant. Source: DUET-VLM (arXiv 2602.18846).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half

from duet_kernels import RankedRows, guided_score, keep_highest
from duet_training.batch_plan import BatchBoundary

Rotary = tuple[Tensor, Tensor]
"""cos and sin ``[1, T, d]``."""


class DuetDecoderLayer(LlamaDecoderLayer):
    """A Llama layer that may drop visual tokens first, inside its forward, where sharded weights are gathered."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_embeddings: Rotary, boundary: BatchBoundary | None = None, **kwargs: Any
    ) -> Any:
        """``hidden_states [B, T, dim]`` -> ``[B, T, dim]``; at a boundary, ``[B, T', dim]`` and the kept rows."""
        if boundary is None:
            return super().forward(hidden_states, position_embeddings=position_embeddings, **kwargs)
        rows = surviving_rows(self, hidden_states, position_embeddings, boundary)
        hidden_states = hidden_states.flatten(0, 1)[rows].unflatten(0, (-1, boundary.num_rows))
        position_embeddings = first_positions(position_embeddings, boundary.num_rows)
        return super().forward(hidden_states, position_embeddings=position_embeddings, **kwargs), rows


def first_positions(rotary: Rotary, num_rows: int) -> Rotary:
    cos, sin = rotary
    return cos[:, :num_rows], sin[:, :num_rows]


@torch.compiler.disable  # selections are rare, and their shapes vary
@torch.no_grad()
def surviving_rows(layer: LlamaDecoderLayer, hidden: Tensor, rotary: Rotary, boundary: BatchBoundary) -> Tensor:
    """``[B * T']``: for every row after the boundary, its row in ``hidden [B, T, dim]``."""
    rows = boundary.rows.clone()  # gradient checkpointing runs this twice
    if boundary.ranked is not None:
        keep_highest(_score(layer, hidden, rotary, boundary.ranked), boundary.ranked, rows)
    return rows


def _score(layer: LlamaDecoderLayer, hidden: Tensor, rotary: Rotary, ranked: RankedRows) -> Tensor:
    """Scores ``[B * T]`` float32, computed with the layer's own norm, projections and rotary embedding."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    cos, sin = (table.flatten(0, 1) for table in first_positions(rotary, hidden.shape[1]))  # [T, d]
    heads = (-1, attention.head_dim)
    query = attention.q_proj(normed.flatten(0, 1)[ranked.guiding_keys]).unflatten(-1, heads)
    key = attention.k_proj(normed).unflatten(-1, heads)
    query = _rotate(query, cos[ranked.query_positions], sin[ranked.query_positions])
    key = _rotate(key, cos, sin).flatten(0, 1)
    with torch.autocast(hidden.device.type, enabled=False):
        return guided_score(query, key, ranked, attention.scaling)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``heads [..., rows, heads, d]`` by ``cos, sin [rows, d]``."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return (heads * cos + rotate_half(heads) * sin).to(heads.dtype)
