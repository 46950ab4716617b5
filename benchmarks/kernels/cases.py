"""Calls of every operation, and the minimum that each must read, write and compute.

The sizes are LLaVA-1.5-7B's, and for towers without a class token Qwen3-VL-8B's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from duet_kernels import (
    BlockTables,
    RankedRows,
    RankedRowsBuilder,
    SegmentBuffers,
    cls_score,
    gather_rows,
    guided_score,
    keep_highest,
    place_rows,
    received_score,
    select_and_merge,
    to_device_at_once,
)

NUM_PATCHES, TOWER_HEADS, TOWER_HEAD_DIM = 576, 16, 64
TOWER_DIM = TOWER_HEADS * TOWER_HEAD_DIM
QWEN_HEADS, QWEN_HEAD_DIM = 16, 72
HEADS, HEAD_DIM = 32, 128
HIDDEN_DIM = HEADS * HEAD_DIM
NUM_TEXT = 64  # text rows; they all follow the picture, and they all guide
GROUP_SEGMENTS = (0, 0, 1, 2)  # per KV-cache group: vLLM splits 16, 8 and 8 layers into groups of equal size
DROPPED = (0, 288, 576)  # rows, by segment
BLOCK_SIZE, MAX_ROWS, MAX_REQUESTS, MAX_LENGTH = 16, 8192, 256, 2048

MergeSettings = tuple[int, int, int]  # dominant, contextual, cluster width
LIGHT, BALANCED, AGGRESSIVE = (300, 7, 4), (170, 32, 4), (72, 30, 4)
VISIONZIP = (54, 10, 0)


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a public operation.

    Args:
        name: the operation, its dtype and its sizes.
        build: makes the inputs on a device and returns the call.
        num_bytes: the minimum memory traffic: needed inputs are read once, and outputs are written once.
        num_flops: the minimum computation.
        flop_dtype: the dtype of the operands.
        in_graph: whether a CUDA graph can capture the call: not if it copies from the host.
    """

    name: str
    build: Callable[[torch.device], Callable[[], object]]
    num_bytes: int
    num_flops: int = 0
    flop_dtype: torch.dtype = torch.float32
    in_graph: bool = True


def cases() -> list[Case]:
    """All cases that are measured and compiled."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        *(cls_score_case(images, bf16) for images in (1, 8, 32)),
        *(cls_score_case(8, dtype) for dtype in (fp16, fp32)),
        received_case([4096], bf16),
        *(merge_case([AGGRESSIVE] * images, bf16) for images in (1, 8, 32)),
        merge_case([BALANCED] * 8, fp16),
        merge_case([LIGHT] * 8, fp32),
        merge_case([VISIONZIP] * 8, bf16),
        *(guided_case(requests, NUM_PATCHES, bf16) for requests in (1, 8, 32)),
        *(guided_case(8, sum(counts[:2]), bf16) for counts in (LIGHT, BALANCED, AGGRESSIVE)),
        guided_case(8, NUM_PATCHES, bf16, kv_heads=8),
        guided_case(8, NUM_PATCHES, fp32),
        *(keep_case(requests, NUM_PATCHES) for requests in (1, 8, 32)),
        keep_case(8, sum(AGGRESSIVE[:2])),
        *(gather_case(requests, NUM_PATCHES, bf16) for requests in (1, 8, 32)),
        *(gather_case(8, NUM_PATCHES, dtype) for dtype in (fp16, fp32)),
        decode_case(128),
        prefill_case(12),
    ]


def cls_score_case(images: int, dtype: torch.dtype) -> Case:
    """Query and key are views of the tower's fused projection, as in the engine."""
    num_keys = 1 + NUM_PATCHES

    def build(device: torch.device) -> Callable[[], object]:
        qkv = torch.randn(images, num_keys, 3 * TOWER_DIM, dtype=dtype, device=device)
        query, key, _ = (part.unflatten(-1, (TOWER_HEADS, TOWER_HEAD_DIM)) for part in qkv.chunk(3, dim=-1))
        return lambda: cls_score(query[:, 0], key, TOWER_HEAD_DIM**-0.5)

    return Case(
        f"cls_score {_short(dtype)} {images} images",
        build,
        num_bytes=images * ((num_keys + 1) * TOWER_DIM * dtype.itemsize + NUM_PATCHES * 4),
        num_flops=2 * images * num_keys * TOWER_DIM,
        flop_dtype=dtype,
    )


def received_case(lengths: Sequence[int], dtype: torch.dtype) -> Case:
    """Units of a tower without a class token, by their numbers of patches. The kernels compute the product twice."""
    num_rows = sum(lengths)

    def build(device: torch.device) -> Callable[[], object]:
        query, key = torch.randn(2, num_rows, QWEN_HEADS, QWEN_HEAD_DIM, dtype=dtype, device=device)
        return lambda: received_score(query, key, lengths, QWEN_HEAD_DIM**-0.5)

    return Case(
        f"received_score {_short(dtype)} units of {'+'.join(map(str, lengths))}",
        build,
        num_bytes=2 * num_rows * QWEN_HEADS * QWEN_HEAD_DIM * dtype.itemsize + num_rows * 4,
        num_flops=2 * sum(length**2 for length in lengths) * QWEN_HEADS * QWEN_HEAD_DIM,
        flop_dtype=dtype,
        in_graph=False,
    )


def merge_case(settings: Sequence[MergeSettings], dtype: torch.dtype) -> Case:
    """Only rows of ``hidden`` that are kept or merged count, and only rows of the float32 metric that are compared."""
    images, num_rows = len(settings), 1 + NUM_PATCHES

    def build(device: torch.device) -> Callable[[], object]:
        hidden = torch.randn(images, num_rows, TOWER_DIM, dtype=dtype, device=device)
        score = torch.rand(images, NUM_PATCHES, device=device)
        metric = torch.randn(images, num_rows, TOWER_HEAD_DIM, device=device)
        return lambda: select_and_merge(hidden, score, metric, settings)

    num_bytes, num_flops = images * NUM_PATCHES * (4 + 8), 0
    for dominant, contextual, width in settings:
        num_rest = NUM_PATCHES - (dominant - 1)
        candidates = min(max(1, width * contextual), num_rest) if width else num_rest
        candidates = candidates if contextual else 0
        num_bytes += (dominant + candidates + dominant + contextual) * TOWER_DIM * dtype.itemsize
        num_bytes += candidates * TOWER_HEAD_DIM * 4
        num_flops += (candidates - contextual) * contextual * 2 * TOWER_HEAD_DIM + candidates * TOWER_DIM
    sizes = "+".join(map(str, settings[0][:2])) + (" unlimited" if settings[0][2] == 0 else "")
    return Case(
        f"select_and_merge {_short(dtype)} {images} images, {sizes}", build, num_bytes, num_flops, in_graph=False
    )


def guided_case(
    requests: int, num_visual: int, dtype: torch.dtype, num_text: int = NUM_TEXT, kv_heads: int = HEADS
) -> Case:
    """Prompts of one picture and the text after it; all of the text guides."""
    num_keys = num_visual + num_text

    def build(device: torch.device) -> Callable[[], object]:
        query = torch.randn(requests * num_text, HEADS, HEAD_DIM, dtype=dtype, device=device)
        key = torch.randn(requests * num_keys, kv_heads, HEAD_DIM, dtype=dtype, device=device)
        ranked = _ranked_rows(device, requests, num_visual, num_text)
        return lambda: guided_score(query, key, ranked, HEAD_DIM**-0.5)

    seen = num_text * num_visual + num_text * (num_text + 1) // 2
    heads = "" if kv_heads == HEADS else f", {HEADS}/{kv_heads} heads"
    return Case(
        f"guided_score {_short(dtype)} {requests} requests, {num_visual}+{num_text}{heads}",
        build,
        num_bytes=requests * ((num_text * HEADS + num_keys * kv_heads) * HEAD_DIM * dtype.itemsize + num_visual * 4),
        num_flops=2 * requests * seen * HEADS * HEAD_DIM,
        flop_dtype=dtype,
    )


def keep_case(requests: int, num_visual: int) -> Case:
    """Keeps half of each request's only pool."""
    num_keys, keep = num_visual + NUM_TEXT, num_visual // 2
    num_after = keep + NUM_TEXT

    def build(device: torch.device) -> Callable[[], object]:
        score = torch.rand(requests * num_keys, device=device)
        ranked = _ranked_rows(device, requests, num_visual, NUM_TEXT)
        (rows,) = _indices(device, requests, np.arange(requests * num_after))
        return lambda: keep_highest(score, ranked, rows)

    return Case(
        f"keep_highest fp32 {requests} requests, {num_visual} -> {keep}",
        build,
        num_bytes=requests * (num_visual * 4 + keep * 8),
    )


def gather_case(requests: int, num_visual: int, dtype: torch.dtype) -> Case:
    """Gathers the rows that remain when half of each request's visual tokens are dropped."""
    num_before, num_after = num_visual + NUM_TEXT, num_visual // 2 + NUM_TEXT
    num_rows = requests * num_after

    def build(device: torch.device) -> Callable[[], object]:
        hidden, residual = torch.randn(2, requests * num_before, HIDDEN_DIM, dtype=dtype, device=device)
        kept = np.linspace(0, num_before - 1, num_after).astype(np.int64)
        starts = np.arange(requests)[:, None] * num_before
        rows, places = _indices(device, requests, starts + kept, np.arange(requests * num_before))
        return lambda: gather_rows(rows.view(-1), hidden, residual, places)

    return Case(
        f"gather_rows {_short(dtype)} {num_rows} of {requests * num_before} rows",
        build,
        num_bytes=num_rows * (2 * 2 * HIDDEN_DIM * dtype.itemsize + 3 * 8),
    )


def decode_case(requests: int) -> Case:
    """A step in which every request adds one token."""
    return _place_case("decode", np.full(requests, 1), NUM_PATCHES + NUM_TEXT + np.arange(requests) % 100)


def prefill_case(requests: int) -> Case:
    """A step in which every request is prefilled and drops."""
    length = NUM_PATCHES + NUM_TEXT
    num_rows = np.array([[length - dropped] * requests for dropped in DROPPED])
    return _place_case("prefill", num_rows, np.full(requests, length))


def _place_case(kind: str, num_rows: np.ndarray, lengths: np.ndarray) -> Case:
    """``num_rows`` is ``[segments, requests]``, or ``[requests]`` if it is the same in every segment."""
    num_segments, requests = len(DROPPED), len(lengths)
    starts = np.pad(np.broadcast_to(num_rows, (num_segments, requests)).cumsum(axis=1), ((0, 0), (1, 0)))
    total = int(starts[0, -1])

    def build(device: torch.device) -> Callable[[], object]:
        blocks = torch.arange(MAX_REQUESTS * (MAX_LENGTH // BLOCK_SIZE), dtype=torch.int32, device=device)
        tables = [blocks.view(MAX_REQUESTS, -1).clone() for _ in GROUP_SEGMENTS]
        block_tables = BlockTables(tables, [BLOCK_SIZE] * len(tables), GROUP_SEGMENTS)
        out = SegmentBuffers.allocate(num_segments, len(tables), MAX_REQUESTS, MAX_ROWS, device)
        seq_lens = torch.as_tensor(lengths, dtype=torch.int32).to(device)
        dropped, starts_there = to_device_at_once([np.tile(DROPPED, (requests, 1)).T, starts], device)
        return lambda: place_rows(seq_lens, dropped, starts_there, block_tables, total, out)

    blocks_read = sum(int(np.ceil(np.diff(starts[segment]) / BLOCK_SIZE).sum()) for segment in GROUP_SEGMENTS)
    num_written = num_segments * (8 * requests + 4) + 8 * total * (num_segments + len(GROUP_SEGMENTS))
    return Case(
        f"place_rows {kind} of {requests}, {total} rows",
        build,
        num_bytes=4 * requests + 8 * num_segments * (2 * requests + 1) + 4 * blocks_read + num_written,
    )


def _ranked_rows(device: torch.device, requests: int, num_visual: int, num_text: int) -> RankedRows:
    """Requests with one pool and the text after it. All of the text guides, and half of every pool is kept."""
    builder, keep = RankedRowsBuilder(), num_visual // 2
    num_before, num_after = num_visual + num_text, keep + num_text
    for idx in range(requests):
        guiding_rows = range(num_visual, num_before)
        builder.add(num_before, guiding_rows, [(0, num_visual, keep, idx * num_before, idx * num_after)])
    ranked = builder.build()
    assert ranked is not None, f"{requests=}"
    return ranked.unpack(iter(_indices(device, requests, *ranked.pack())))


def _indices(device: torch.device, requests: int, *arrays: np.ndarray) -> list[torch.Tensor]:
    """The arrays on the device. As in the engine, they may have any offset in a buffer: odd if ``requests`` is odd."""
    before = np.zeros(requests % 2, dtype=np.int64)
    return [to_device_at_once([before, array], device)[1] for array in arrays]


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
