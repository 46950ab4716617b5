"""Attention over a segment: vLLM's own backend, with metadata rewritten to what the segment holds."""

import functools
from copy import copy
from typing import Any

import numpy as np
import torch

from duet_server.engine.current_step import CurrentStep
from duet_server.engine.kv_cache import SegmentSpec
from duet_server.engine.vllm_internals import (
    Attention,
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadata,
    CommonAttentionMetadata,
    VllmConfig,
    subclass_attention_backend_with_overrides,
)

# Their metadata and cache writes fit; others plan ahead on the host, or lay their cache out in other ways.
BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN")


class SegmentAttention(Attention):
    """A decoder layer's attention, replaced in place, whose KV cache belongs to one segment."""

    def __init__(self, attention: Attention, segment_idx: int, step: CurrentStep, vllm_config: VllmConfig) -> None:
        name = attention.layer_name
        _check_plain(attention)
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
        self.segment_idx = segment_idx
        self.step = step

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> SegmentSpec:
        spec = super().get_kv_cache_spec(vllm_config)
        assert spec is not None
        return SegmentSpec(**vars(spec), segment_idx=self.segment_idx)


def _check_plain(attention: Attention) -> None:
    """Raise for attention that is more than a causal softmax over all keys: it could not be built anew."""
    backend = attention.attn_backend.get_name()
    extras = {
        f"the attention backend {backend} (--attention-backend)": backend not in BACKENDS,
        "a sliding window": attention.sliding_window is not None,
        "sinks": attention.has_sink,
        "a shared KV cache": attention.kv_sharing_target_layer_name is not None,
        "a logit soft cap": bool(getattr(attention.impl, "logits_soft_cap", None)),
        "ALiBi": getattr(attention.impl, "alibi_slopes", None) is not None,
    }
    found = [name for name, present in extras.items() if present]
    if found:
        raise ValueError(
            f"{attention.layer_name} has {' and '.join(found)}: DUET serves plain causal attention by "
            f"{', '.join(BACKENDS)} only"
        )


@functools.lru_cache
def segment_backend(underlying: type[AttentionBackend]) -> type[AttentionBackend]:
    """The backend's subclass that plans, writes and reads a segment's rows (as vLLM's ``cross_attention.py`` does)."""

    class SegmentBuilder(underlying.get_builder_cls()):  # type: ignore[misc]
        # The runner would hand the second group of a cut segment the slot mapping of the uncompressed layout.
        supports_update_block_table = False

        @classmethod
        def get_cudagraph_support(cls, vllm_config: VllmConfig, kv_cache_spec: Any) -> AttentionCGSupport:
            # A graph that also serves prefills would be replayed for one that drops.
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
            # The forward context's slot mapping belongs to the uncompressed layout: written through it, keys would
            # land in other requests' blocks.
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
    """The step's metadata as one layer's segment sees it; a copy, since all groups share the original."""
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
        if layout.has_drops:  # a graph is captured with a bound of its own
            view.max_seq_len = int(view.seq_lens_cpu_upper_bound.max())
    view.max_query_len = layout.max_query_lens[segment_idx]
    view.num_actual_tokens = num_rows
    view.positions = step.buffers.positions[segment_idx, :num_rows]
    view.slot_mapping = step.buffers.slot_mapping[group_idx, :num_rows]
    view._num_computed_tokens_cache = None
    view._token_to_req_indices_cache = None
    return view
