"""Stage 2: runs a Llama-family decoder segment by segment, and drops visual tokens in between."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from duet_kernels import RankedRows, gather_rows, guided_score, keep_highest
from duet_server.engine.attention import SegmentAttention
from duet_server.engine.current_step import CurrentStep
from duet_server.engine.stage_seconds import stage_clock
from duet_server.engine.step_layout import StepBoundary, StepLayout
from duet_server.engine.trace import Traces
from duet_server.engine.vllm_internals import (
    VllmConfig,
    get_forward_context,
    get_tensor_model_parallel_world_size,
    set_model_tag,
    support_torch_compile,
    tensor_model_parallel_all_gather,
)
from duet_server.plan import guiding_rows, make_layout, make_plan
from duet_server.stage_metrics import STAGE2_SECONDS


class DecoderState(NamedTuple):
    """The state that passes from segment to segment, one row for each remaining token."""

    positions: torch.Tensor  # [rows]
    hidden: torch.Tensor  # [rows, hidden_size]
    residual: torch.Tensor | None = None  # [rows, hidden_size]
    places: torch.Tensor | None = None  # [rows] index of each row in the whole batch; None before the first drop


class SegmentedDecoder:
    """Runs vLLM's decoder (its ``.layers`` and ``.norm``) in segments; owns no weights.

    Args:
        decoder: the inner model of a Llama-family ``…ForCausalLM``; its attention layers are replaced.
        boundaries: decoder layers before which visual tokens may drop.
    """

    def __init__(self, decoder: nn.Module, boundaries: Sequence[int], vllm_config: VllmConfig) -> None:
        edges = (0, *boundaries, len(decoder.layers))
        self.step = CurrentStep(len(edges) - 1, vllm_config)
        self.traces = Traces()
        self.clock = stage_clock(STAGE2_SECONDS, vllm_config)
        self.hidden_size = decoder.norm.weight.shape[0]
        for layer in decoder.layers:
            _check_layer(layer)
        self.segments = tuple(
            compiled_segment(
                segment_idx, decoder.layers[start:end], decoder.norm if end == edges[-1] else None, vllm_config
            )
            for segment_idx, (start, end) in enumerate(pairwise(edges))
        )
        for segment_idx, segment in enumerate(self.segments):
            for layer in segment.layers:
                layer.self_attn.attn = SegmentAttention(layer.self_attn.attn, segment_idx, self.step, vllm_config)

    def __call__(self, positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Run all segments; hidden states ``[rows, hidden_size]`` for the output head, zero in dropped rows."""
        layout, num_rows = self._layout(), hidden.shape[0]
        state = DecoderState(positions, hidden)
        for segment_idx, segment in enumerate(self.segments):
            if layout is not None and segment_idx > 0:
                state = self._cross(layout, segment_idx, state)
            state = _run(segment, state)
        if state.places is None:
            return state.hidden
        self.clock.observe()
        # The runner reads logits at rows of the whole batch, so the survivors return to their original rows.
        return state.hidden.new_zeros(num_rows, self.hidden_size).index_copy_(0, state.places, state.hidden)

    def _cross(self, layout: StepLayout, segment_idx: int, state: DecoderState) -> DecoderState:
        """The state that enters a segment, made from the state that left the segment before."""
        boundary = self.step.boundaries[segment_idx - 1]
        if boundary is not None:
            assert state.residual is not None, "at least one layer runs before a boundary"
            with self.clock:
                rows, score = surviving_rows(boundary, self.segments[segment_idx].layers[0], *state[:3])
                places = torch.arange(len(state.hidden), device=rows.device) if state.places is None else state.places
                gathered = gather_rows(rows, state.hidden, state.residual, places)
            self.traces.add_boundary(layout, segment_idx, gathered[2], score)
            state = DecoderState(state.positions, *gathered)
        return state._replace(positions=self.step.buffers.positions[segment_idx, : len(state.hidden)])

    @torch.inference_mode()
    def warm_up(self, device: torch.device, dtype: torch.dtype) -> None:
        """Drop tokens of a made-up prompt, so that Triton compiles the kernels before the first request."""
        if len(self.segments) == 1:
            return
        prompt = make_layout(8, [(1, 5)])
        keep = [0.5] * (len(self.segments) - 1)
        plan = make_plan(prompt, keep, guiding_rows(prompt, "all"))
        seq_lens = torch.full((1,), prompt.num_tokens, dtype=torch.int32, device=device)
        self.step.begin([plan], np.zeros(1), np.full(1, prompt.num_tokens), seq_lens, prompt.num_tokens)
        hidden = torch.zeros(prompt.num_tokens, self.hidden_size, dtype=dtype, device=device)
        positions = self.step.buffers.positions[0, : prompt.num_tokens]
        boundary, layer = self.step.boundaries[0], self.segments[1].layers[0]
        assert boundary is not None, f"nothing drops: {plan}"
        rows, _ = surviving_rows(boundary, layer, positions, hidden, hidden.clone())
        gather_rows(rows, hidden, hidden, positions)
        self.step.layout = None

    def _layout(self) -> StepLayout | None:
        """The step's layout; None in a profiling run, which has no requests."""
        return self.step.layout if get_forward_context().attn_metadata is not None else None


class DecoderSegment(nn.Module):
    """The decoder layers between two boundaries. The last segment also applies the decoder's final norm."""

    def __init__(self, layers: Iterable[Any], norm: Any) -> None:
        super().__init__()
        self.layers, self.norms = (
            tuple(layers),
            () if norm is None else (norm,),
        )  # tuples, so not registered as submodules: the decoder owns them

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        for layer in self.layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        for norm in self.norms:
            hidden_states, residual = norm(hidden_states, residual)
        return hidden_states, residual


def compiled_segment(segment_idx: int, layers: Iterable[Any], norm: Any, vllm_config: VllmConfig) -> DecoderSegment:
    """A segment with a class and a code object of its own, compiled by vLLM unless compilation is off.

    With a shared class and code, a segment could run the code that was compiled for another segment. So every segment
    has its own class and its own copy of ``forward``. vLLM and torch tell compiled functions apart here:

    - torch's Dynamo caches compiled code per code object. vLLM drops Dynamo's guards, so nothing else distinguishes the
      segments (``TorchCompileWithNoGuardsWrapper`` in ``vllm/compilation/wrapper.py``, whose ``original_code_object``
      is ``type(self).forward.__code__``).
    - vLLM finds compiled functions on disk by ``forward.__qualname__`` and the code's first line (``_model_hash_key``
      in ``vllm/compilation/decorators.py``), and by ``VllmConfig.compute_hash``. The boundaries are part of that hash,
      since they are in ``additional_config``.
    - ``VllmBackend`` (``vllm/compilation/backends.py``) gives each model tag a folder of its own in the cache.
    """
    name = f"DecoderSegment{segment_idx}"
    code = DecoderSegment.forward.__code__.replace(co_name=f"forward_{segment_idx}", co_qualname=f"{name}.forward")
    forward = FunctionType(code, DecoderSegment.forward.__globals__, code.co_name)
    forward.__qualname__, forward.__annotations__ = code.co_qualname, DecoderSegment.forward.__annotations__
    segment_class = support_torch_compile(type(name, (DecoderSegment,), {"forward": forward, "__module__": __name__}))
    with set_model_tag(f"decoder_segment_{segment_idx}"):
        return segment_class(layers=layers, norm=norm, vllm_config=vllm_config)


def _run(segment: DecoderSegment, state: DecoderState) -> DecoderState:
    """The state behind a segment. No local of the loop may keep its rows alive once the next boundary drops some."""
    hidden, residual = segment(state.positions, state.hidden, state.residual)
    return state._replace(hidden=hidden, residual=residual)


def surviving_rows(
    boundary: StepBoundary, layer: Any, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows that pass a boundary, ``[rows after]``, and the score of each key, or None if nothing is ranked.

    ``layer`` is the first layer behind the boundary.
    """
    if boundary.ranked is None:
        return boundary.rows, None
    keys = gather_rows(boundary.key_rows, hidden, residual, positions)
    score = _score(boundary.ranked, layer, *keys)
    keep_highest(score, boundary.ranked, boundary.rows)
    return boundary.rows, score


def _score(
    ranked: RankedRows, layer: Any, hidden: torch.Tensor, residual: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """The score of every key by its request's guiding rows, with the layer's norm, projections and rotary embedding."""
    attention = layer.self_attn
    qkv, _ = attention.qkv_proj(layer.input_layernorm(hidden, residual)[0])
    query, key, _ = qkv.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
    query, key = attention.rotary_emb(positions, query.contiguous(), key.contiguous())
    heads = (-1, attention.head_dim)
    guiding = query[ranked.guiding_keys].unflatten(-1, heads)
    score = guided_score(guiding, key.unflatten(-1, heads), ranked, attention.scaling)
    num_ranks = get_tensor_model_parallel_world_size()
    if num_ranks == 1:
        return score
    # Gather, then add in rank order: every rank gets the same bits, and so keeps the same tokens.
    return tensor_model_parallel_all_gather(score, dim=0).view(num_ranks, -1).mean(dim=0)


def _check_layer(layer: Any) -> None:
    """Raise unless the layer makes queries and keys as Llama does: norm, then qkv_proj, then rotary_emb."""
    attention = getattr(layer, "self_attn", None)
    has_all = all(
        hasattr(attention, name) for name in ("qkv_proj", "rotary_emb", "attn", "q_size", "kv_size", "scaling")
    )
    scales_queries = hasattr(attention, "q_norm") or getattr(attention, "do_llama_4_scaling", False)
    if not has_all or not hasattr(layer, "input_layernorm") or scales_queries:
        raise ValueError(f"DUET serves Llama-family decoders only, not {type(layer).__name__} (docs/adding_a_model.md)")
