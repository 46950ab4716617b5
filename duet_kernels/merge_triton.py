"""``select_and_merge`` as three Triton kernels: rank the patches, assign candidates to anchors, write the tokens."""

import numpy as np
import torch
import triton
import triton.language as tl

from duet_kernels.dispatch import to_device_at_once
from duet_kernels.sort_key import sort_key

# Sizes of the blocks of one program.
RANK_BLOCK, RANK_AGAINST_BLOCK = tl.constexpr(32), tl.constexpr(256)  # patches: 64 comparisons per thread at once
ASSIGN_BLOCK, ANCHOR_BLOCK = tl.constexpr(32), tl.constexpr(32)  # a float32 dot runs in registers; larger blocks spill
METRIC_BLOCK = tl.constexpr(64)  # CLIP's head_dim, so one step
COUNT_BLOCK, CANDIDATE_BLOCK = tl.constexpr(128), tl.constexpr(256)  # patches
ROW_BLOCK, DIM_BLOCK = tl.constexpr(8), tl.constexpr(1024)  # rows and columns of `hidden`: 16 KiB of bf16 in flight

TABLE_FIELDS = tl.constexpr(6)  # values per image, listed in `_image_table`


@triton.jit
def _rank_kernel(
    score_ptr,
    rank_ptr,  # [B, N]
    by_score_ptr,  # [B, N]
    num_patches,
    image_stride,
    patch_stride,
):
    """One image, one block of patches: a patch's rank is the number of patches before it in score order."""
    image = tl.program_id(0).to(tl.int64)
    score_ptr += image * image_stride
    patch = tl.program_id(1) * RANK_BLOCK + tl.arange(0, RANK_BLOCK)
    is_patch = patch < num_patches
    key = sort_key(tl.load(score_ptr + patch.to(tl.int64) * patch_stride, mask=is_patch, other=float("-inf")))

    rank = tl.zeros([RANK_BLOCK], tl.int32)
    for start in range(0, num_patches, RANK_AGAINST_BLOCK):
        other = start + tl.arange(0, RANK_AGAINST_BLOCK)
        # The -inf past the last patch never counts: in a tie its index is the higher one.
        other_score = tl.load(
            score_ptr + other.to(tl.int64) * patch_stride, mask=other < num_patches, other=float("-inf")
        )
        other_key = sort_key(other_score)
        wins_tie = (other_key[None, :] == key[:, None]) & (other[None, :] < patch[:, None])
        rank += tl.sum(((other_key[None, :] > key[:, None]) | wins_tie).to(tl.int32), axis=1)
    tl.store(rank_ptr + image * num_patches + patch, rank, mask=is_patch)
    tl.store(by_score_ptr + image * num_patches + rank, patch.to(tl.int64), mask=is_patch)


@triton.jit
def _num_dominant_before(rank_ptr, end, num_dominant):
    """How many of the patches before `end` are dominant."""
    counts = tl.zeros([COUNT_BLOCK], tl.int32)
    for start in range(0, end, COUNT_BLOCK):
        patch = start + tl.arange(0, COUNT_BLOCK)
        rank = tl.load(rank_ptr + patch, mask=patch < end, other=num_dominant)
        counts += (rank < num_dominant).to(tl.int32)
    return tl.sum(counts, axis=0)


@triton.jit
def _rest_at(rank_ptr, places, num_patches, num_dominant):
    """The patches at `places` among the patches that are not dominant, in patch order; 0 past the last."""
    found = tl.zeros_like(places)
    num_before = 0
    for start in range(0, num_patches, COUNT_BLOCK):
        patch = start + tl.arange(0, COUNT_BLOCK)
        is_rest = tl.load(rank_ptr + patch, mask=patch < num_patches, other=-1) >= num_dominant
        place = num_before + tl.cumsum(is_rest.to(tl.int32), axis=0) - 1
        is_found = is_rest[None, :] & (place[None, :] == places[:, None])
        found += tl.sum(tl.where(is_found, patch[None, :], 0), axis=1)
        num_before += tl.sum(is_rest.to(tl.int32), axis=0)
    return found


@triton.jit
def _candidate_at(places, is_real, by_place, rank_ptr, by_score_ptr, num_patches, num_dominant):
    """The patches at `places` in the order of the candidates; arbitrary if not `is_real`."""
    if by_place:
        patch = _rest_at(rank_ptr, places, num_patches, num_dominant).to(tl.int64)
    else:  # in score order the rest follows the dominant patches
        patch = tl.load(by_score_ptr + num_dominant + places, mask=is_real, other=0)
    return patch


@triton.jit
def _metric_tile(row_ptr, is_row, start, metric_dim, dim_stride):
    """`[rows, METRIC_BLOCK]` float32 from dimension `start` on, padded with zeros."""
    dim = start + tl.arange(0, METRIC_BLOCK)
    is_real = is_row[:, None] & (dim < metric_dim)[None, :]
    return tl.load(row_ptr[:, None] + dim.to(tl.int64)[None, :] * dim_stride, mask=is_real, other=0.0).to(tl.float32)


@triton.jit
def _norm(row_ptr, is_row, metric_dim, dim_stride):
    """`[rows, 1]`, the divisor of `torch.nn.functional.normalize`."""
    squares = tl.zeros(is_row.shape, tl.float32)
    for start in range(0, metric_dim, METRIC_BLOCK):
        tile = _metric_tile(row_ptr, is_row, start, metric_dim, dim_stride)
        squares += tl.sum(tile * tile, axis=1)
    return tl.maximum(tl.sqrt_rn(squares), 1e-12)[:, None]


@triton.jit
def _assign_kernel(
    table_ptr,  # [B, TABLE_FIELDS]
    rank_ptr,  # [B, N]
    by_score_ptr,  # [B, N]
    metric_ptr,
    order_ptr,  # [B, N]: the dominant patches ascending, then the candidates in their order
    nearest_ptr,  # [B, N]: for each candidate, in the same order, the anchor that it joins; -1 for an anchor
    num_patches,
    metric_dim,
    image_stride,
    row_stride,
    dim_stride,
    FIRST_PATCH: tl.constexpr,  # the row of patch 0: 1 behind CLS, else 0
):
    """One image: the places of one block of patches, and the anchors that one block of candidates joins."""
    image = tl.program_id(0).to(tl.int64)
    table_ptr += image * TABLE_FIELDS
    rank_ptr += image * num_patches
    by_score_ptr += image * num_patches
    order_ptr += image * num_patches
    num_dominant, num_anchors = tl.load(table_ptr).to(tl.int32), tl.load(table_ptr + 1).to(tl.int32)
    num_candidates = tl.load(table_ptr + 2).to(tl.int32)
    first = tl.program_id(1) * ASSIGN_BLOCK

    patch = first + tl.arange(0, ASSIGN_BLOCK)
    is_dominant = tl.load(rank_ptr + patch, mask=patch < num_patches, other=num_patches) < num_dominant
    num_before = _num_dominant_before(rank_ptr, first, num_dominant)
    dominant_place = num_before + tl.cumsum(is_dominant.to(tl.int32), axis=0) - 1
    tl.store(order_ptr + dominant_place, patch, mask=is_dominant)

    if (num_anchors > 0) & (first < num_candidates):
        step, by_place = tl.load(table_ptr + 3).to(tl.int32), tl.load(table_ptr + 4) != 0
        metric_ptr += image * image_stride + FIRST_PATCH * row_stride
        place = first + tl.arange(0, ASSIGN_BLOCK)
        is_candidate = place < num_candidates
        member = _candidate_at(place, is_candidate, by_place, rank_ptr, by_score_ptr, num_patches, num_dominant)
        tl.store(order_ptr + num_dominant + place, member.to(tl.int32), mask=is_candidate)
        row_ptr = metric_ptr + member * row_stride
        norm = _norm(row_ptr, is_candidate, metric_dim, dim_stride)

        nearest = tl.zeros([ASSIGN_BLOCK], tl.int32)
        largest = tl.full([ASSIGN_BLOCK], float("-inf"), tl.float32)
        for first_anchor in range(0, num_anchors, ANCHOR_BLOCK):
            anchor = first_anchor + tl.arange(0, ANCHOR_BLOCK)
            is_anchor = anchor < num_anchors
            anchor_patch = _candidate_at(
                anchor * step, is_anchor, by_place, rank_ptr, by_score_ptr, num_patches, num_dominant
            )
            anchor_ptr = metric_ptr + anchor_patch * row_stride
            anchor_norm = _norm(anchor_ptr, is_anchor, metric_dim, dim_stride)
            similarity = tl.zeros([ASSIGN_BLOCK, ANCHOR_BLOCK], tl.float32)
            for start in range(0, metric_dim, METRIC_BLOCK):
                unit = tl.div_rn(_metric_tile(row_ptr, is_candidate, start, metric_dim, dim_stride), norm)
                anchor_tile = _metric_tile(anchor_ptr, is_anchor, start, metric_dim, dim_stride)
                anchor_unit = tl.trans(tl.div_rn(anchor_tile, anchor_norm))
                similarity = tl.dot(unit, anchor_unit, similarity, input_precision="ieee")
            similarity = tl.where(is_anchor[None, :], similarity, float("-inf"))
            largest_here, at = tl.max(similarity, axis=1, return_indices=True)  # ties: the lower anchor
            nearest = tl.where(largest_here > largest, first_anchor + at, nearest)
            largest = tl.maximum(largest, largest_here)
        is_member = (place % step != 0) | (place // step >= num_anchors)
        tl.store(nearest_ptr + image * num_patches + place, tl.where(is_member, nearest, -1), mask=is_candidate)


@triton.jit
def _sum_members(hidden_ptr, candidate_ptr, nearest_ptr, anchor, num_candidates, is_dim, row_stride):
    """The float32 sum `[DIM_BLOCK]` of the candidates that join `anchor`, and their number."""
    total = tl.zeros(is_dim.shape, tl.float32)
    num_members = 0
    for start in range(0, num_candidates, CANDIDATE_BLOCK):
        place = start + tl.arange(0, CANDIDATE_BLOCK)
        joins = tl.load(nearest_ptr + place, mask=place < num_candidates, other=-1) == anchor
        patch = tl.load(candidate_ptr + place, mask=joins, other=0)
        turn = tl.cumsum(joins.to(tl.int32), axis=0) - 1
        num_joining = tl.sum(joins.to(tl.int32), axis=0)
        for first_turn in range(0, num_joining, ROW_BLOCK):
            turns = first_turn + tl.arange(0, ROW_BLOCK)
            is_found = joins[None, :] & (turn[None, :] == turns[:, None])
            member = tl.sum(tl.where(is_found, patch[None, :], 0), axis=1).to(tl.int64)
            is_real = (turns < num_joining)[:, None] & is_dim[None, :]
            rows = tl.load(hidden_ptr[None, :] + (member * row_stride)[:, None], mask=is_real, other=0.0)
            total += tl.sum(rows.to(tl.float32), axis=0)
        num_members += num_joining
    return total, num_members


@triton.jit(do_not_specialize=["num_copied", "num_copy_programs"])
def _tokens_kernel(
    table_ptr,  # [B, TABLE_FIELDS]
    rows_ptr,  # [rows, 2]: each output row's image and slot in it; first copied rows, then contextual rows
    order_ptr,  # [B, N]
    nearest_ptr,  # [B, N]
    hidden_ptr,
    tokens_ptr,  # [rows, dim]
    places_ptr,  # [rows]: the patch that each row stands at, -1 for CLS
    num_copied,
    num_copy_programs,
    num_patches,
    dim,
    image_stride,
    row_stride,
    dim_stride,
    FIRST_PATCH: tl.constexpr,  # the row of patch 0: 1 behind CLS, else 0
):
    """One block of columns of a block of copied rows, or of one contextual row."""
    d = tl.program_id(1) * DIM_BLOCK + tl.arange(0, DIM_BLOCK)
    is_dim = d < dim
    hidden_ptr += d.to(tl.int64) * dim_stride  # [DIM_BLOCK]
    tokens_ptr += d
    program = tl.program_id(0)
    if program < num_copy_programs:
        items = program * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
        is_item = items < num_copied
        images = tl.load(rows_ptr + 2 * items, mask=is_item, other=0)
        slots = tl.load(rows_ptr + 2 * items + 1, mask=is_item, other=0)
        # CLS, if there is one, is slot 0 and row 0.
        is_patch = is_item & (slots >= FIRST_PATCH)
        patches = tl.load(order_ptr + images * num_patches + slots - FIRST_PATCH, mask=is_patch, other=-1)
        sources = images * image_stride + (patches + FIRST_PATCH).to(tl.int64) * row_stride
        targets = tl.load(table_ptr + images * TABLE_FIELDS + 5, mask=is_item, other=0) + slots
        is_real = is_item[:, None] & is_dim[None, :]
        rows = tl.load(hidden_ptr[None, :] + sources[:, None], mask=is_real)
        tl.store(tokens_ptr[None, :] + (targets * dim)[:, None], rows, mask=is_real)
        if tl.program_id(1) == 0:
            tl.store(places_ptr + targets, patches.to(tl.int64), mask=is_item)
    else:
        item = num_copied + program - num_copy_programs
        image, slot = tl.load(rows_ptr + 2 * item), tl.load(rows_ptr + 2 * item + 1)
        table_ptr += image * TABLE_FIELDS
        num_dominant, num_candidates = tl.load(table_ptr), tl.load(table_ptr + 2).to(tl.int32)
        anchor = (slot - FIRST_PATCH - num_dominant).to(tl.int32)
        candidate_ptr = order_ptr + image * num_patches + num_dominant
        patch_ptr = hidden_ptr + image * image_stride + FIRST_PATCH * row_stride
        total, num_members = _sum_members(
            patch_ptr, candidate_ptr, nearest_ptr + image * num_patches, anchor, num_candidates, is_dim, row_stride
        )
        mean = tl.div_rn(total, tl.maximum(num_members, 1).to(tl.float32))
        anchor_patch = tl.load(candidate_ptr + anchor * tl.load(table_ptr + 3)).to(tl.int64)
        token = tl.load(patch_ptr + anchor_patch * row_stride, mask=is_dim, other=0.0).to(tl.float32) + mean
        target = tl.load(table_ptr + 5) + slot
        tl.store(tokens_ptr + target * dim, token.to(tokens_ptr.dtype.element_ty), mask=is_dim)
        if tl.program_id(1) == 0:
            tl.store(places_ptr + target, anchor_patch)


def select_and_merge_triton(
    hidden: torch.Tensor, score: torch.Tensor, metric: torch.Tensor, settings: np.ndarray, num_cls: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The Triton path of ``select_and_merge``, which has checked the settings ``[images, 3]``."""
    num_images, num_rows, dim = hidden.shape
    num_patches = num_rows - num_cls
    assert score.shape == (num_images, num_patches), f"{score.shape=} {hidden.shape=}"
    assert score.dtype == torch.float32, f"{score.dtype=}"
    assert metric.shape[:2] == hidden.shape[:2], f"{metric.shape=} {hidden.shape=}"
    dominant, contextual = settings[:, 0], settings[:, 1]
    num_copied, num_contextual = int(dominant.sum()), int(contextual.sum())
    table = _image_table(settings, num_patches, num_cls)
    rows = np.concatenate([_slots(np.zeros_like(dominant), dominant), _slots(dominant, contextual)])
    table_on_device, rows_on_device = to_device_at_once([table, rows], hidden.device)

    by_score = torch.empty(num_images, num_patches, dtype=torch.int64, device=hidden.device)
    rank = torch.empty(num_images, num_patches, dtype=torch.int32, device=hidden.device)
    order, nearest = torch.empty_like(rank), torch.empty_like(rank)
    tokens = torch.empty(num_copied + num_contextual, dim, dtype=hidden.dtype, device=hidden.device)
    places = torch.empty(num_copied + num_contextual, dtype=torch.int64, device=hidden.device)

    _rank_kernel[num_images, triton.cdiv(num_patches, RANK_BLOCK.value)](
        score_ptr=score,
        rank_ptr=rank,
        by_score_ptr=by_score,
        num_patches=num_patches,
        image_stride=score.stride(0),
        patch_stride=score.stride(1),
        num_warps=4,
    )
    _assign_kernel[num_images, triton.cdiv(num_patches, ASSIGN_BLOCK.value)](
        table_ptr=table_on_device,
        rank_ptr=rank,
        by_score_ptr=by_score,
        metric_ptr=metric,
        order_ptr=order,
        nearest_ptr=nearest,
        num_patches=num_patches,
        metric_dim=metric.shape[2],
        image_stride=metric.stride(0),
        row_stride=metric.stride(1),
        dim_stride=metric.stride(2),
        FIRST_PATCH=num_cls,
        num_warps=4,
        num_stages=1,  # most loops run once, so a pipeline would only hold registers
    )
    num_copy_programs = triton.cdiv(num_copied, ROW_BLOCK.value)
    _tokens_kernel[num_copy_programs + num_contextual, triton.cdiv(dim, DIM_BLOCK.value)](
        table_ptr=table_on_device,
        rows_ptr=rows_on_device,
        order_ptr=order,
        nearest_ptr=nearest,
        hidden_ptr=hidden,
        tokens_ptr=tokens,
        places_ptr=places,
        num_copied=num_copied,
        num_copy_programs=num_copy_programs,
        num_patches=num_patches,
        dim=dim,
        image_stride=hidden.stride(0),
        row_stride=hidden.stride(1),
        dim_stride=hidden.stride(2),
        FIRST_PATCH=num_cls,
        num_warps=8,  # 32 elements of a tile per thread, so that 4 programs fit on a multiprocessor
    )
    return tokens, by_score, places


def _image_table(settings: np.ndarray, num_patches: int, num_cls: int) -> np.ndarray:
    """``[B, TABLE_FIELDS]``: num_dominant without CLS, num_anchors, num_candidates, step, by_place, first row."""
    num_dominant, num_anchors, width = settings[:, 0] - num_cls, settings[:, 1], settings[:, 2]
    num_rest = num_patches - num_dominant
    num_candidates = np.where(width == 0, num_rest, np.minimum(np.maximum(width * num_anchors, 1), num_rest))
    step = np.maximum(num_candidates // np.maximum(num_anchors, 1), 1)
    num_tokens = settings[:, 0] + num_anchors
    return np.stack(
        [num_dominant, num_anchors, num_candidates, step, width == 0, num_tokens.cumsum() - num_tokens], axis=1
    )


def _slots(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``[count.sum(), 2]``: image and slot of every image's slots ``[first, first + count)``."""
    image = np.repeat(np.arange(len(count)), count)
    return np.stack([image, np.arange(len(image)) + np.repeat(first + count - count.cumsum(), count)], axis=1)
