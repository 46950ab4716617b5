"""Stage 2: runs vLLM's decoder segment by segment, and drops visual tokens in between."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from duet_kernels import gather_rows, guided_score, keep_highest
from duet_server.engine.attention import SegmentAttention
from duet_server.engine.backbones.decoder import Decoder
from duet_server.engine.current_step import CurrentStep
from duet_server.engine.ranks import mean_over_ranks
from duet_server.engine.stage_seconds import stage_clock
from duet_server.engine.step_layout import StepBoundary, StepLayout
from duet_server.engine.trace import Traces
from duet_server.engine.vllm_internals import (
    VllmConfig,
    get_forward_context,
    set_model_tag,
    support_torch_compile,
)
from duet_server.plan import guiding_rows, make_layout, make_plan
from duet_server.stage_metrics import STAGE2_SECONDS


class DecoderState(NamedTuple):
    """The state that passes from segment to segment, one row for each remaining token."""

    positions: torch.Tensor  # [rows], or [3, rows] with M-RoPE
    hidden: torch.Tensor  # [rows, hidden_size]
    residual: torch.Tensor | None = None  # [rows, hidden_size]
    places: torch.Tensor | None = None  # [rows] index of each row in the whole batch; None before the first drop


def segment_decoder(
    inner: Any, decoder: Decoder, boundaries: Sequence[int], vllm_config: VllmConfig
) -> "SegmentedDecoder":
    """Replace the forward of vLLM's inner model by one in segments. vLLM's outer model goes on calling it."""
    segmented = SegmentedDecoder(inner, decoder, boundaries, vllm_config)
    vllm_class = type(inner)
    inner.__class__ = type(f"Segmented{vllm_class.__name__}", (SegmentedModel, vllm_class), {})
    inner.segmented = segmented
    return segmented


class SegmentedModel:
    """Mixed in front of vLLM's inner model, whose layers the segments run."""

    segmented: "SegmentedDecoder"

    def __call__(
        self: Any,
        input_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **first_segment: Any,
    ) -> torch.Tensor:
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.segmented(positions, hidden, **first_segment)


class SegmentedDecoder:
    """Runs vLLM's decoder (its ``.layers`` and ``.norm``) in segments; owns no weights.

    Args:
        inner: the inner model of a ``…ForCausalLM``; its attention layers are replaced.
        decoder: how its layers are made.
        boundaries: decoder layers before which visual tokens may drop.
    """

    def __init__(self, inner: Any, decoder: Decoder, boundaries: Sequence[int], vllm_config: VllmConfig) -> None:
        edges = (0, *boundaries, len(inner.layers))
        self.step = CurrentStep(len(edges) - 1, vllm_config)
        self.traces = Traces()
        self.clock = stage_clock(STAGE2_SECONDS, vllm_config)
        self.hidden_size = inner.norm.weight.shape[0]
        self.family = decoder
        for layer in inner.layers:
            _check_layer(layer, decoder)
        self.segments = tuple(
            compiled_segment(
                segment_idx, inner.layers[start:end], inner.norm if end == edges[-1] else None, vllm_config
            )
            for segment_idx, (start, end) in enumerate(pairwise(edges))
        )
        for segment_idx, segment in enumerate(self.segments):
            for layer in segment.layers:
                attention = getattr(layer, decoder.attention)
                attention.attn = SegmentAttention(attention.attn, segment_idx, self.step, vllm_config)

    def __call__(self, positions: torch.Tensor, hidden: torch.Tensor, **first_segment: Any) -> torch.Tensor:
        """Run all segments; hidden states ``[rows, hidden_size]`` for the output head, zero in dropped rows.

        ``first_segment`` are further arguments of vLLM's inner model, which concern the first layers only.
        """
        layout, num_rows = self._layout(), hidden.shape[0]
        state = _run(self.segments[0], DecoderState(positions, hidden), **first_segment)
        for segment_idx, segment in enumerate(self.segments[1:], start=1):
            if layout is not None:
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
            with self.clock:
                if state.places is None:
                    state = state._replace(places=torch.arange(len(state.hidden), device=state.hidden.device))
                rows, score = surviving_rows(boundary, self.segments[segment_idx].layers[0], self.family, state)
                gathered = gather_rows(rows, state.hidden, state.residual, state.places)
                positions = state.positions
                if self.family.positions == "kept":
                    positions = positions.index_select(-1, rows)
            self.traces.add_boundary(layout, segment_idx, gathered[2], score)
            state = DecoderState(positions, *gathered)
        if self.family.positions == "kept":
            return state
        return state._replace(positions=self.step.buffers.positions[segment_idx, : len(state.hidden)])

    @torch.inference_mode()
    def warm_up(self, device: torch.device, dtype: torch.dtype) -> None:
        """Drop tokens of a made-up prompt, so that Triton compiles the kernels before the first request."""
        if len(self.segments) == 1:
            return
        prompt = make_layout(8, [(1, 5)])
        keep = [0.5] * (len(self.segments) - 1)
        plan = make_plan(prompt, keep, guiding_rows(prompt, "all"))
        num_rows = prompt.num_tokens
        seq_lens = torch.full((1,), num_rows, dtype=torch.int32, device=device)
        self.step.begin([plan], np.zeros(1), np.full(1, num_rows), seq_lens, num_rows)
        hidden = torch.zeros(num_rows, self.hidden_size, dtype=dtype, device=device)
        positions = self.step.buffers.positions[0, :num_rows]
        places = torch.arange(num_rows, device=device)
        three = positions.expand(3, num_rows) if self.family.positions == "kept" else positions
        boundary, layer = self.step.boundaries[0], self.segments[1].layers[0]
        assert boundary is not None, f"nothing drops: {plan}"
        rows, _ = surviving_rows(boundary, layer, self.family, DecoderState(three, hidden, hidden.clone(), places))
        gather_rows(rows, hidden, hidden, places)
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
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        deepstack_input_embeds: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the layers. ``deepstack_input_embeds`` holds rows to add behind each of the first layers (Qwen3-VL)."""
        for layer_idx, layer in enumerate(self.layers):
            hidden_states, residual = layer(positions, hidden_states, residual)
            if deepstack_input_embeds is not None and layer_idx < len(deepstack_input_embeds):
                hidden_states = hidden_states + deepstack_input_embeds[f"deepstack_input_embeds_{layer_idx}"]
        for norm in self.norms:
            hidden_states, residual = norm(hidden_states, residual)
        return hidden_states, residual


# Rows come last in positions, which have three axes with M-RoPE.
DYNAMIC_DIMS = {"positions": -1, "hidden_states": 0, "residual": 0, "deepstack_input_embeds": 0}


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
    forward.__defaults__ = DecoderSegment.forward.__defaults__
    compiled = support_torch_compile(dynamic_arg_dims=DYNAMIC_DIMS)
    segment_class = compiled(type(name, (DecoderSegment,), {"forward": forward, "__module__": __name__}))
    with set_model_tag(f"decoder_segment_{segment_idx}"):
        return segment_class(layers=layers, norm=norm, vllm_config=vllm_config)


def _run(segment: DecoderSegment, state: DecoderState, **first_segment: Any) -> DecoderState:
    """The state behind a segment. No local of the loop may keep its rows alive once the next boundary drops some."""
    hidden, residual = segment(state.positions, state.hidden, state.residual, **first_segment)
    return state._replace(hidden=hidden, residual=residual)


def surviving_rows(
    boundary: StepBoundary, layer: Any, family: Decoder, state: DecoderState
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows that pass a boundary, ``[rows after]``, and the score of each key, or None if nothing is ranked.

    ``layer`` is the first layer behind the boundary.
    """
    if boundary.ranked is None:
        return boundary.rows, None
    assert state.residual is not None, "at least one layer runs before a boundary"
    hidden, residual, places = gather_rows(boundary.key_rows, state.hidden, state.residual, state.places)
    positions = state.positions.index_select(-1, boundary.key_rows)
    query, key, scale = intercept(layer, family, positions, hidden, residual)
    score = mean_over_ranks(guided_score(query[boundary.ranked.guiding_keys], key, boundary.ranked, scale))
    if boundary.structure is not None:
        score.masked_fill_(torch.isin(places, boundary.structure), torch.inf)
    keep_highest(score, boundary.ranked, boundary.rows)
    return boundary.rows, score


class InterceptedError(Exception):
    """Carries the queries and keys out of an attention module."""


class Interceptor(nn.Module):
    """Stands where the attention kernel is, and raises what the kernel would get."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, *_: Any, **__: Any) -> None:
        raise InterceptedError(query, key)


def intercept(
    layer: Any, family: Decoder, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The queries and keys that a layer would make of these rows, by its own norms, projections and rotary embedding.

    Returns:
        query ``[rows, heads, head_dim]``, key ``[rows, kv_heads, head_dim]``, and the factor of their products.
    """
    attention = getattr(layer, family.attention)
    kernel, attention.attn = attention.attn, Interceptor()
    try:
        attention(positions, getattr(layer, family.norm)(hidden, residual)[0])
    except InterceptedError as seen:
        query, key = (rows.unflatten(-1, (-1, kernel.head_size)) for rows in seen.args)
    finally:
        attention.attn = kernel
    return query, key, kernel.impl.scale


def _check_layer(layer: Any, family: Decoder) -> None:
    """Raise unless the layer has its attention and its norm where the family says."""
    attention = getattr(layer, family.attention, None)
    if not hasattr(attention, "attn") or not hasattr(layer, family.norm):
        raise ValueError(f"DUET cannot serve decoders of {type(layer).__name__} (docs/adding_a_model.md)")
