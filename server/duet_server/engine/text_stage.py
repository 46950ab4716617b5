"""Stage 2: a Llama-family decoder run segment by segment, dropping visual tokens in between."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from duet_kernels import gather_rows, guided_score, keep_highest
from duet_server.engine.attention import CurrentStep, SegmentAttention
from duet_server.engine.step_layout import BoundaryRows, ScoredRows, StepLayout
from duet_server.engine.vllm_internals import (
    VllmConfig,
    get_forward_context,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)


class SegmentedDecoder:
    """Runs vLLM's decoder (its ``.layers`` and ``.norm``) in segments; owns no weights.

    Args:
        decoder: the inner model of a Llama-family ``…ForCausalLM``; its attention layers are replaced.
        boundaries: decoder layers before which visual tokens may drop.
    """

    def __init__(self, decoder: nn.Module, boundaries: Sequence[int], vllm_config: VllmConfig) -> None:
        self.step = CurrentStep()
        self.norm = decoder.norm
        edges = (0, *boundaries, len(decoder.layers))
        self.segments = tuple(DecoderSegment(list(decoder.layers[start:end])) for start, end in pairwise(edges))
        for segment_idx, segment in enumerate(self.segments):
            for layer in segment.layers:
                _check_layer(layer)
                layer.self_attn.attn = SegmentAttention(layer.self_attn.attn, segment_idx, self.step, vllm_config)

    def __call__(self, positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[rows, hidden_size]`` before the output head; rows that were dropped are zero."""
        layout = self._layout()
        num_rows, residual, origin = hidden.shape[0], None, None
        for segment_idx, segment in enumerate(self.segments):
            if layout is not None and segment_idx > 0:
                boundary = layout.boundaries[segment_idx - 1]
                if boundary is not None:
                    rows = surviving_rows(boundary, segment.layers[0], positions, hidden, residual)
                    hidden, residual = gather_rows(rows, hidden, residual)
                    origin = rows if origin is None else origin[rows]
                positions = layout.segment(segment_idx).positions
            hidden, residual = segment(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        if origin is None:
            return hidden
        # The runner takes logits at rows of the whole batch: put the survivors back to where they came from.
        return hidden.new_zeros(num_rows, hidden.shape[1]).index_copy_(0, origin, hidden)

    def _layout(self) -> StepLayout | None:
        """The step's layout, unless this is a profiling run, which has no requests."""
        return self.step.layout if get_forward_context().attn_metadata is not None else None


class DecoderSegment:
    """The layers between two boundaries: all of them see the same tokens."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = tuple(layers)

    def __call__(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return hidden, residual


def surviving_rows(
    boundary: BoundaryRows,
    layer: Any,
    positions: torch.Tensor,
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """The rows that go on past a boundary, ``[rows after]``; ``layer`` is the first one behind it."""
    rows = boundary.rows
    for scored in boundary.scored:
        score = _score(scored, layer, positions, hidden, residual)
        kept = keep_highest(
            score, scored.pool_start, scored.pool_length, scored.num_keep, scored.max_pool, scored.targets.shape[0]
        )
        rows = rows.index_copy(0, scored.targets, scored.key_rows[kept])
    return rows


def _score(
    scored: ScoredRows, layer: Any, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """Score of every key row by its request's guiding rows, through the layer's own norm, projections and rotary."""
    rows, attention = scored.key_rows, layer.self_attn
    assert residual is not None, "a boundary lies behind at least one layer"
    qkv, _ = attention.qkv_proj(layer.input_layernorm(hidden[rows] + residual[rows]))
    query, key, _ = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
    query, key = attention.rotary_emb(positions[rows], query.contiguous(), key.contiguous())
    score = guided_score(
        query[scored.guiding_keys].unflatten(-1, (-1, attention.head_dim)),
        key.unflatten(-1, (-1, attention.head_dim)),
        scored.cu_queries,
        scored.cu_keys,
        scored.query_positions,
        scored.max_queries,
        scored.max_keys,
        attention.scaling,
    )
    num_ranks = get_tensor_model_parallel_world_size()
    if num_ranks == 1:
        return score
    # Gathered and added in rank order, so that every rank gets the same bits and keeps the same tokens.
    return tensor_model_parallel_all_gather(score, dim=0).view(num_ranks, -1).mean(dim=0)


def _check_layer(layer: Any) -> None:
    """Raise if the layer's queries and keys are not norm -> qkv_proj -> rotary_emb, as in Llama."""
    attention = getattr(layer, "self_attn", None)
    has_all = all(
        hasattr(attention, name) for name in ("qkv_proj", "rotary_emb", "attn", "q_size", "kv_size", "scaling")
    )
    scales_queries = hasattr(attention, "q_norm") or getattr(attention, "do_llama_4_scaling", False)
    if not has_all or not hasattr(layer, "input_layernorm") or scales_queries:
        raise ValueError(f"DUET serves Llama-family decoders; {type(layer).__name__} is none (docs/adding_a_model.md)")
