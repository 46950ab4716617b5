"""Writes lengths, positions and cache slots of a step's rows in every segment, into buffers that CUDA graphs read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from duet_kernels.dispatch import runs_triton, to_device

PAD_SLOT = -1  # vLLM's cache writes skip this slot


class BlockTables:
    """The block tables of all KV-cache groups; the tensors must live as long as this object.

    Args:
        tables: per group ``[requests, blocks]`` int32, in batch order when a step is placed.
        block_sizes: per group, tokens per block.
        segments: per group, the segment whose layers it holds.
    """

    def __init__(self, tables: Sequence[torch.Tensor], block_sizes: Sequence[int], segments: Sequence[int]) -> None:
        assert all(table.dtype == torch.int32 and table.stride(1) == 1 for table in tables), "contiguous int32 rows"
        self.tables, self.block_sizes, self.segments = tuple(tables), tuple(block_sizes), tuple(segments)
        columns = [[table.data_ptr() for table in tables], [table.stride(0) for table in tables], block_sizes, segments]
        self.on_device = to_device(torch.tensor(columns).numpy(), tables[0].device, torch.int64)  # [4, groups]


@dataclass(frozen=True)
class SegmentBuffers:
    """The output of ``place_rows``. Addresses never change, so that a captured CUDA graph can read them."""

    query_start_loc: torch.Tensor  # [segments, max_requests + 1 or more] int32
    seq_lens: torch.Tensor  # [segments, max_requests or more] int32
    positions: torch.Tensor  # [segments, max_rows or more] int64
    slot_mapping: torch.Tensor  # [groups, max_rows or more] int64

    @classmethod
    def allocate(
        cls, num_segments: int, num_groups: int, max_requests: int, max_rows: int, device: torch.device
    ) -> "SegmentBuffers":
        # Every row is aligned to 16 bytes, because the kernels that read it are compiled for that.
        starts, requests, rows = (-(-size // 4) * 4 for size in (max_requests + 1, max_requests, max_rows))
        return cls(
            torch.zeros(num_segments, starts, dtype=torch.int32, device=device),
            torch.zeros(num_segments, requests, dtype=torch.int32, device=device),
            torch.zeros(num_segments, rows, dtype=torch.int64, device=device),
            torch.full((num_groups, rows), PAD_SLOT, dtype=torch.int64, device=device),
        )


def place_rows(
    seq_lens: torch.Tensor,
    dropped: torch.Tensor,
    starts: torch.Tensor,
    block_tables: BlockTables,
    num_rows: int,
    out: SegmentBuffers,
) -> None:
    """Write the layout of one step for every segment. Positions have no gaps where tokens were dropped.

    Args:
        seq_lens: ``[requests]`` int32, tokens per request before any drop, tokens of this step included.
        dropped: ``[segments, requests]`` int64, tokens of the request that the segment does not hold.
        starts: ``[segments, requests + 1]`` int64, where each request's rows begin; the last entry counts all rows.
        block_tables: every segment has at least one group.
        num_rows: rows of the batch before any drop, padding included. In a segment, rows from its own number of rows
            up to ``num_rows`` get position 0 and ``PAD_SLOT``.
        out: of every segment and group, the first ``requests`` (``+ 1``) or ``num_rows`` entries are written.
    """
    num_requests = seq_lens.shape[0]
    assert dropped.shape[1] == num_requests <= out.seq_lens.shape[1], f"{dropped.shape=} {out.seq_lens.shape=}"
    assert num_rows <= out.positions.shape[1], f"{num_rows=} {out.positions.shape=}"
    place = _place_rows_triton if runs_triton(seq_lens) else _place_rows_reference
    place(seq_lens, dropped, starts, block_tables, num_rows, out)


def _place_rows_reference(
    seq_lens: torch.Tensor,
    dropped: torch.Tensor,
    starts: torch.Tensor,
    block_tables: BlockTables,
    num_rows: int,
    out: SegmentBuffers,
) -> None:
    num_requests = seq_lens.shape[0]
    row = torch.arange(num_rows, device=seq_lens.device)
    groups = zip(block_tables.tables, block_tables.block_sizes, block_tables.segments, strict=True)
    for group_idx, (table, block_size, segment_idx) in enumerate(groups):
        held, ends = seq_lens - dropped[segment_idx], starts[segment_idx, 1:]
        request = torch.searchsorted(ends, row, right=True).clamp(max=num_requests - 1)
        is_real = row < ends[-1]
        positions = (row + (held - ends)[request]).where(is_real, 0)
        slots = table[request, positions // block_size].long() * block_size + positions % block_size
        out.query_start_loc[segment_idx, : num_requests + 1] = starts[segment_idx]
        out.seq_lens[segment_idx, :num_requests] = held
        out.positions[segment_idx, :num_rows] = positions
        out.slot_mapping[group_idx, :num_rows] = slots.where(is_real, PAD_SLOT)


def _place_rows_triton(
    seq_lens: torch.Tensor,
    dropped: torch.Tensor,
    starts: torch.Tensor,
    block_tables: BlockTables,
    num_rows: int,
    out: SegmentBuffers,
) -> None:
    num_groups = len(block_tables.tables)
    assert all(tensor.is_contiguous() for tensor in (seq_lens, dropped, starts)), "inputs must be contiguous"
    _place_rows_kernel[seq_lens.shape[0] + 1, num_groups](
        seq_lens_ptr=seq_lens,
        dropped_ptr=dropped,
        starts_ptr=starts,
        groups_ptr=block_tables.on_device,
        out_starts_ptr=out.query_start_loc,
        out_seq_lens_ptr=out.seq_lens,
        out_positions_ptr=out.positions,
        out_slots_ptr=out.slot_mapping,
        num_rows=num_rows,
        dropped_stride=dropped.stride(0),
        starts_stride=starts.stride(0),
        out_starts_stride=out.query_start_loc.stride(0),
        out_seq_lens_stride=out.seq_lens.stride(0),
        out_positions_stride=out.positions.stride(0),
        out_slots_stride=out.slot_mapping.stride(0),
        PAD_SLOT=PAD_SLOT,
        BLOCK=256,  # a decoding request has one row, a prefill several hundred
        num_warps=2,
    )


@triton.jit(do_not_specialize=["dropped_ptr", "starts_ptr", "num_rows", "dropped_stride", "starts_stride"])
def _place_rows_kernel(
    seq_lens_ptr,
    dropped_ptr,
    starts_ptr,
    groups_ptr,  # [4, groups]: address, row stride, block size, segment
    out_starts_ptr,
    out_seq_lens_ptr,
    out_positions_ptr,
    out_slots_ptr,
    num_rows,
    dropped_stride,
    starts_stride,
    out_starts_stride,
    out_seq_lens_stride,
    out_positions_stride,
    out_slots_stride,
    PAD_SLOT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per request and group, and one more per group for the rows behind the last request."""
    request, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    num_requests, num_groups = tl.num_programs(0) - 1, tl.num_programs(1)
    table = tl.load(groups_ptr + group).to(tl.pointer_type(tl.int32))
    table_stride = tl.load(groups_ptr + num_groups + group)
    block_size = tl.load(groups_ptr + 2 * num_groups + group)
    segment = tl.load(groups_ptr + 3 * num_groups + group)

    # Several groups of one segment write the same lengths and positions.
    start = tl.load(starts_ptr + segment * starts_stride + request)
    tl.store(out_starts_ptr + segment * out_starts_stride + request, start.to(tl.int32))
    positions_ptr = out_positions_ptr + segment * out_positions_stride
    slots_ptr = out_slots_ptr + group * out_slots_stride
    if request < num_requests:
        end = tl.load(starts_ptr + segment * starts_stride + request + 1)
        held = tl.load(seq_lens_ptr + request) - tl.load(dropped_ptr + segment * dropped_stride + request)
        tl.store(out_seq_lens_ptr + segment * out_seq_lens_stride + request, held.to(tl.int32))
        for first in range(start, end, BLOCK):
            row = first + tl.arange(0, BLOCK)
            is_real = row < end
            position = row + held - end
            block = tl.load(table + request * table_stride + position // block_size, mask=is_real, other=0)
            slot = block.to(tl.int64) * block_size + position % block_size
            tl.store(positions_ptr + row, position, mask=is_real)
            tl.store(slots_ptr + row, slot, mask=is_real)
    else:
        for first in range(start, num_rows, BLOCK):
            row = first + tl.arange(0, BLOCK)
            is_padding = row < num_rows
            tl.store(positions_ptr + row, tl.zeros([BLOCK], tl.int64), mask=is_padding)
            tl.store(slots_ptr + row, tl.full([BLOCK], PAD_SLOT, tl.int64), mask=is_padding)
