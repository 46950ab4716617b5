"""Positions and slots of rows: the Triton kernel against the reference, the reference against counting."""

from __future__ import annotations

import pytest
import torch

from duet_kernels import BlockTables, SegmentBuffers, implementation, place_rows
from duet_kernels.place_rows import PAD_SLOT

SEGMENTS = [0, 1, 1, 2]  # by group: vLLM may split a segment into several groups
BLOCK_SIZES = [4, 16, 16, 4]
MAX_REQUESTS, MAX_ROWS = 9, 1200

# Per request: tokens held before the step, tokens in the step, tokens dropped so far, by segment.
DECODES = [(700, 1, (0, 300, 576)), (13, 1, (0, 0, 0)), (0, 0, (0, 0, 0))]
STEPS = {
    "one row": [(0, 1, (0, 0, 0))],
    "one prefill": [(0, 640, (0, 288, 576))],
    "a prefill of blocks": [(0, 512, (0, 256, 256))],
    "decodes and padding": DECODES,
    "all padding": [(0, 0, (0, 0, 0))] * 2,
    "mixed": [DECODES[0], (0, 300, (0, 7, 11)), (64, 31, (0, 0, 0)), (0, 257, (0, 1, 256)), DECODES[2]],
}


def step_tensors(requests: list[tuple[int, int, tuple[int, ...]]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """seq_lens, dropped and starts. The rows that a step drops are not among its rows."""
    dropped = torch.tensor([drops for _, _, drops in requests]).T.contiguous()
    rows = torch.stack(
        [
            torch.tensor([now - (drops[segment] if before == 0 else 0) for before, now, drops in requests])
            for segment in range(3)
        ]
    )
    starts = torch.nn.functional.pad(rows.cumsum(dim=1), (1, 0))
    seq_lens = torch.tensor([before + now for before, now, _ in requests], dtype=torch.int32)
    return seq_lens.to(device), dropped.to(device), starts.to(device)


def block_tables(device: torch.device) -> BlockTables:
    tables = [
        torch.randperm(MAX_REQUESTS * 256, generator=torch.Generator().manual_seed(group))
        .view(MAX_REQUESTS, 256)
        .to(device, torch.int32)
        for group in range(len(SEGMENTS))
    ]
    tables[2] = tables[2].repeat(1, 2)[:, :256]  # rows farther apart than they are long
    return BlockTables(tables, BLOCK_SIZES, SEGMENTS)


def stale_buffers(device: torch.device) -> SegmentBuffers:
    """Buffers with values from an earlier step."""
    buffers = SegmentBuffers.allocate(3, len(SEGMENTS), MAX_REQUESTS, MAX_ROWS, device)
    for tensor in vars(buffers).values():
        tensor.fill_(77_777)
    return buffers


@pytest.mark.parametrize("requests", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("padding", [0, 5])
def test_triton_equals_the_reference(requests: list, padding: int, device: torch.device):
    tensors, tables = step_tensors(requests, device), block_tables(device)
    num_rows = int(tensors[2][0, -1]) + padding
    expected, buffers = stale_buffers(device), stale_buffers(device)
    with implementation("reference"):
        place_rows(*tensors, tables, num_rows, expected)
    with implementation("triton"):
        place_rows(*tensors, tables, num_rows, buffers)

    for written, reference in zip(vars(buffers).values(), vars(expected).values(), strict=True):
        assert written.equal(reference)


@pytest.mark.parametrize("requests", STEPS.values(), ids=STEPS.keys())
def test_reference_equals_counting(requests: list):
    device = torch.device("cpu")
    tables, buffers = block_tables(device), stale_buffers(device)
    seq_lens, dropped, starts = step_tensors(requests, device)
    num_rows = int(starts[0, -1]) + 3
    with implementation("reference"):
        place_rows(seq_lens, dropped, starts, tables, num_rows, buffers)

    for group, (segment, block_size) in enumerate(zip(SEGMENTS, BLOCK_SIZES, strict=True)):
        positions, slots = [], []
        for request_idx, (before, now, drops) in enumerate(requests):
            held = before + now - drops[segment]
            first = before - drops[segment] if before else 0
            positions += range(first, held)
            table = tables.tables[group][request_idx]
            slots += [int(table[p // block_size]) * block_size + p % block_size for p in range(first, held)]
            assert buffers.seq_lens[segment, request_idx] == held
        assert buffers.query_start_loc[segment, len(requests)] == len(positions)
        num_padding = num_rows - len(positions)
        assert buffers.positions[segment, :num_rows].tolist() == positions + [0] * num_padding
        assert buffers.slot_mapping[group, :num_rows].tolist() == slots + [PAD_SLOT] * num_padding
        assert buffers.slot_mapping[group, num_rows] == 77_777


def test_more_than_the_buffers_hold_is_a_broken_invariant(device: torch.device):
    tensors = step_tensors([(0, 1, (0, 0, 0))] * (MAX_REQUESTS + 4), device)

    with pytest.raises(AssertionError, match="dropped"):
        place_rows(*tensors, block_tables(device), 10, stale_buffers(device))
    with pytest.raises(AssertionError, match="num_rows"):
        place_rows(*step_tensors(DECODES, device), block_tables(device), MAX_ROWS + 4, stale_buffers(device))
