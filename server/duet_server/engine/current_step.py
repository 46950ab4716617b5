"""The running step. The runner's hook begins it; the attention layers and the model read it."""

from collections.abc import Sequence

import numpy as np
import torch

from duet_kernels import BlockTables, SegmentBuffers, place_rows
from duet_kernels.place_rows import PAD_SLOT
from duet_server.engine.step_layout import StepBoundary, StepLayout, move_layout
from duet_server.engine.vllm_internals import KVCacheConfig, VllmConfig
from duet_server.plan import RequestPlan


class CurrentStep:
    """Holds the layout of the running step and the buffers that all steps reuse."""

    buffers: SegmentBuffers

    def __init__(self, num_segments: int, vllm_config: VllmConfig) -> None:
        self.num_segments = num_segments
        self._vllm_config = vllm_config
        self.layout: StepLayout | None = None  # None: every segment uses the metadata that vLLM prepared
        self.boundaries: tuple[StepBoundary | None, ...] = ()

    def allocate(
        self, kv_cache_config: KVCacheConfig, tables: Sequence[torch.Tensor], block_sizes: Sequence[int]
    ) -> None:
        """Allocate the buffers. Called once, after the KV cache exists.

        Args:
            kv_cache_config: vLLM's, with a ``SegmentSpec`` in every group.
            tables: per KV-cache group ``[requests, blocks]``, the runner's block tables in batch order.
            block_sizes: per KV-cache group, tokens per block of its table.
        """
        groups = kv_cache_config.kv_cache_groups
        segments = [group.kv_cache_spec.segment_idx for group in groups]
        scheduler = self._vllm_config.scheduler_config
        self._block_tables = BlockTables(tables, block_sizes, segments)
        self._place_of_layer = {
            layer_name: (group_idx, segments[group_idx])
            for group_idx, group in enumerate(groups)
            for layer_name in group.layer_names
        }
        self.buffers = SegmentBuffers.allocate(
            self.num_segments,
            len(groups),
            scheduler.max_num_seqs,
            scheduler.max_num_batched_tokens,
            tables[0].device,
        )

    def place_of_layer(self, layer_name: str) -> tuple[int, int]:
        """The layer's KV-cache group and segment."""
        return self._place_of_layer[layer_name]

    def begin(
        self,
        plans: Sequence[RequestPlan | None],
        num_computed: np.ndarray,
        num_scheduled: np.ndarray,
        seq_lens: torch.Tensor,
        num_rows: int,
        is_dummy: bool = False,
    ) -> None:
        """Lay out a step before its attention metadata is built.

        Args:
            plans, num_computed, num_scheduled: as in ``StepLayout``, in batch order, without padding.
            seq_lens: ``[requests]`` int32 on the device, tokens per request before any drop, tokens of this step
                included. Padding is included, as in everything that ``place_rows`` writes.
            num_rows: rows of the batch, padding included.
            is_dummy: whether the rows belong to no request, as in a capture or in an idle data-parallel rank. Then
                they write nothing to the KV cache: the block tables still hold the blocks of other requests.
        """
        if not any(plans) and not self._replays_graph(num_scheduled):
            self.layout, self.boundaries = None, (None,) * (self.num_segments - 1)
            return
        num_padding = seq_lens.shape[0] - len(plans)
        if num_padding:
            plans = [*plans, *[None] * num_padding]
            num_scheduled = np.append(num_scheduled, [0] * num_padding)
        if self.layout is None or not self.layout.holds_for(plans, num_computed, num_scheduled):
            self.layout = StepLayout(plans, num_computed, num_scheduled, self.num_segments)
            self._on_device = move_layout(self.layout, seq_lens.device)
            self.boundaries = self._on_device.boundaries
        dropped, starts = self._on_device.dropped, self._on_device.starts
        place_rows(seq_lens, dropped, starts, self._block_tables, num_rows, self.buffers)
        if is_dummy:
            self.buffers.slot_mapping[:, :num_rows].fill_(PAD_SLOT)

    def _replays_graph(self, num_scheduled: np.ndarray) -> bool:
        """Whether a full CUDA graph may run the step. It reads the buffers in every step, even if no request drops."""
        mode = self._vllm_config.compilation_config.cudagraph_mode
        return mode is not None and mode.has_full_cudagraphs() and num_scheduled.max() <= 1
