"""Attention over a segment: vLLM's own backend, with metadata rewritten to what the segment holds."""

import functools
from copy import copy
from typing import Any

import torch

from duet_server.engine.kv_cache import SegmentSpec
from duet_server.engine.step_layout import StepLayout
from duet_server.engine.vllm_internals import (
    Attention,
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadata,
    CommonAttentionMetadata,
    VllmConfig,
    subclass_attention_backend_with_overrides,
)


class CurrentStep:
    """Holder of the running step's layout, shared by the runner, the model and its attention layers."""

    def __init__(self) -> None:
        self.layout: StepLayout | None = None  # None: a step in which nothing was ever dropped


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
    extras = {
        "a sliding window": attention.sliding_window is not None,
        "sinks": attention.has_sink,
        "a shared KV cache": attention.kv_sharing_target_layer_name is not None,
        "a logit soft cap": bool(getattr(attention.impl, "logits_soft_cap", None)),
        "ALiBi": getattr(attention.impl, "alibi_slopes", None) is not None,
    }
    found = [name for name, present in extras.items() if present]
    if found:
        raise ValueError(f"{attention.layer_name} has {' and '.join(found)}: DUET serves plain causal attention only")


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
            common = segment_metadata(
                common_attn_metadata, layer.step.layout, layer.segment_idx, self.kv_cache_spec.block_size
            )
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


def segment_metadata(
    common: CommonAttentionMetadata, layout: StepLayout | None, segment_idx: int, block_size: int
) -> CommonAttentionMetadata:
    """The step's metadata as one segment sees it; a copy, since all groups share the original."""
    if layout is None:
        return common
    rows = layout.segment(segment_idx)
    seq_lens, positions, request_idx = rows.locate(common.seq_lens)
    view = copy(common)
    view.query_start_loc = rows.query_start_loc
    view.query_start_loc_cpu = rows.query_start_loc_cpu
    view.seq_lens = seq_lens
    if common.seq_lens_cpu_upper_bound is not None:
        view.seq_lens_cpu_upper_bound = common.seq_lens_cpu_upper_bound - rows.dropped_cpu
        view.max_seq_len = int(view.seq_lens_cpu_upper_bound.max())
    view.max_query_len = rows.max_query_len
    view.num_actual_tokens = rows.num_rows
    view.positions = positions
    blocks = common.block_table_tensor[request_idx, positions // block_size]
    view.slot_mapping = blocks.long() * block_size + positions % block_size
    view._num_computed_tokens_cache = None
    view._token_to_req_indices_cache = None
    return view
