"""Attention over a segment: vLLM's own backend, with metadata rewritten for the rows that the segment holds."""

import functools
import inspect
from copy import copy
from typing import Any

import numpy as np
import torch

from duet_server.engine.current_step import CurrentStep
from duet_server.engine.kv_cache import SegmentSpec
from duet_server.engine.supported import BACKENDS
from duet_server.engine.vllm_internals import (
    Attention,
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadata,
    CommonAttentionMetadata,
    VllmConfig,
    subclass_attention_backend_with_overrides,
)


class SegmentAttention(Attention):
    """Replaces the attention of a decoder layer. Its KV cache belongs to one segment."""

    def __init__(self, attention: Attention, segment_idx: int, step: CurrentStep, vllm_config: VllmConfig) -> None:
        name = attention.layer_name
        _check_plain(attention, vllm_config)
        del vllm_config.compilation_config.static_forward_context[name]  # super().__init__ registers it again
        super().__init__(
            attention.num_heads,
            attention.head_size,
            attention.impl.scale,
            num_kv_heads=attention.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=attention.quant_config,
            prefix=name,
            attn_backend=segment_backend(attention.attn_backend),
        )
        _check_copy(attention, self)
        self.segment_idx = segment_idx
        self.step = step

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> SegmentSpec:
        spec = super().get_kv_cache_spec(vllm_config)
        assert spec is not None
        return SegmentSpec(**vars(spec), segment_idx=self.segment_idx)


def _check_plain(attention: Attention, vllm_config: VllmConfig) -> None:
    """Raise if the attention is not causal over all keys, or of a class or backend that the copy would not have."""
    backend = attention.attn_backend
    extras = {
        f"the class {type(attention).__name__}": type(attention) is not Attention,
        f"the attention backend {backend.__name__}": (
            backend.get_name() not in BACKENDS or backend is not attention.backend.get_class()
        ),
        "a sliding window": (attention.sliding_window is not None or vllm_config.model_config.rswa_window is not None),
        "bidirectional attention within images": attention.use_mm_prefix,
    }
    _refuse(attention, [name for name, present in extras.items() if present])


def _check_copy(attention: Attention, copied: "SegmentAttention") -> None:
    """Raise if the model gave its attention an argument that the copy lacks, such as sinks, a soft cap or ALiBi."""
    parts = [(Attention, attention, copied), (type(attention.impl), attention.impl, copied.impl)]
    lost = [
        name
        for built_by, original, new in parts
        for name in inspect.signature(built_by.__init__).parameters
        if name in vars(original) and name != "attn_backend" and vars(original)[name] != vars(new)[name]
    ]
    _refuse(attention, list(dict.fromkeys(lost)))


def _refuse(attention: Attention, extras: list[str]) -> None:
    if extras:
        raise ValueError(
            f"{attention.layer_name} has {' and '.join(extras)}: DUET serves plain causal attention only, by "
            f"{', '.join(BACKENDS)}"
        )


@functools.lru_cache
def segment_backend(underlying: type[AttentionBackend]) -> type[AttentionBackend]:
    """The subclass of a backend that plans, writes and reads the rows of a segment.

    vLLM's ``model_executor/layers/attention/cross_attention.py`` makes its backend in the same way. The list names the
    vLLM functions that use each override. If vLLM stops using one, there is no error, but keys go to wrong blocks or
    wrong rows are read.

    - ``build`` is called by ``GPUModelRunner._build_attention_metadata`` (V1) and ``build_attn_metadata`` in
      ``v1/worker/gpu/attn_utils.py`` (V2), both through ``AttentionGroup.build_metadata``.
    - ``supports_update_block_table`` is read by the same two functions before they call ``update_block_table``.
    - ``get_cudagraph_support`` is called by ``GPUModelRunner._check_and_update_cudagraph_mode`` (V1) and by
      ``get_attn_cg_support`` in that file (V2).
    - ``forward_includes_kv_cache_update`` is read by ``Attention.forward``. If it is false, ``Attention.forward`` calls
      ``unified_kv_cache_update``, which writes keys and values with the slot mapping of the forward context.
    - ``forward`` is called by ``unified_attention_with_output``.
    """

    class SegmentBuilder(underlying.get_builder_cls()):  # type: ignore[misc]
        # A segment can have several KV-cache groups. V1 would build metadata for the first one only, and reuse it
        # for the others with the slot mapping of the uncompressed layout.
        supports_update_block_table = False

        @classmethod
        def get_cudagraph_support(cls, vllm_config: VllmConfig, kv_cache_spec: Any) -> AttentionCGSupport:
            # A CUDA graph that serves prefills as well would also be replayed for a prefill that drops.
            support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
            return min(support, AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE, key=lambda s: s.value)

        def build(
            self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
        ) -> AttentionMetadata:
            layer = self.vllm_config.compilation_config.static_forward_context[self.layer_names[0]]
            common = segment_metadata(common_attn_metadata, layer.step, layer.layer_name)
            metadata = super().build(common_prefix_len, common, fast_build)
            metadata.slot_mapping = common.slot_mapping
            return metadata

    class SegmentImpl(underlying.get_impl_cls()):  # type: ignore[misc]
        def forward(
            self,
            layer: torch.nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            kv_cache: torch.Tensor,
            attn_metadata: AttentionMetadata,
            *args: Any,
            **kwargs: Any,
        ) -> torch.Tensor:
            # The forward context's slot mapping belongs to the uncompressed layout. With it, keys would be written
            # into blocks of other requests.
            if attn_metadata is not None and not underlying.forward_includes_kv_cache_update:
                self.do_kv_cache_update(layer, key, value, kv_cache, attn_metadata.slot_mapping)
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)

    return subclass_attention_backend_with_overrides(
        name_prefix="Segment",
        attention_backend_cls=underlying,
        overrides={
            "get_builder_cls": staticmethod(lambda: SegmentBuilder),
            "get_impl_cls": staticmethod(lambda: SegmentImpl),
            "forward_includes_kv_cache_update": True,
        },
    )


def segment_metadata(common: CommonAttentionMetadata, step: CurrentStep, layer_name: str) -> CommonAttentionMetadata:
    """The step's metadata for the segment of one layer. It is a copy, since all groups share the original."""
    layout = step.layout
    if layout is None:
        return common
    group_idx, segment_idx = step.place_of_layer(layer_name)
    num_reqs = common.num_reqs
    num_rows = common.num_actual_tokens - layout.num_rows[0] + layout.num_rows[segment_idx]  # padding included
    view = copy(common)
    view.query_start_loc = step.buffers.query_start_loc[segment_idx, : num_reqs + 1]
    view.query_start_loc_cpu = torch.from_numpy(layout.starts[segment_idx].astype(np.int32))
    view.seq_lens = step.buffers.seq_lens[segment_idx, :num_reqs]
    if common.seq_lens_cpu_upper_bound is not None:
        view.seq_lens_cpu_upper_bound = common.seq_lens_cpu_upper_bound - torch.from_numpy(
            layout.dropped[segment_idx].astype(np.int32)
        )
        if layout.has_drops:  # a captured graph has its own bound
            view.max_seq_len = int(view.seq_lens_cpu_upper_bound.max())
    view.max_query_len = layout.max_query_lens[segment_idx]
    view.num_actual_tokens = num_rows
    view.positions = step.buffers.positions[segment_idx, :num_rows]
    view.slot_mapping = step.buffers.slot_mapping[group_idx, :num_rows]
    view._num_computed_tokens_cache = None
    view._token_to_req_indices_cache = None
    return view
