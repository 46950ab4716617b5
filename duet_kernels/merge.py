"""Stage 1 selection: dominant patches kept as they are, contextual tokens merged around anchors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from duet_kernels.dispatch import runs_triton, to_device
from duet_kernels.merge_triton import select_and_merge_triton


def select_and_merge(
    hidden: torch.Tensor,
    score: torch.Tensor,
    metric: torch.Tensor,
    settings: Sequence[tuple[int, int, int]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut each image to its own number of tokens.

    Args:
        hidden: ``[images, 1 + patches, dim]``, CLS first.
        score: ``[images, patches]`` float32, higher is kept; ties go to the lower patch.
        metric: ``[images, 1 + patches, metric_dim]``, compared by cosine when clusters form.
        settings: per image ``(dominant, contextual, cluster_width)``; ``dominant`` counts CLS, and
            ``dominant - 1 + contextual <= patches``. Width 0 is unlimited: every other patch joins a cluster and
            anchors are spread over the patches in place order (VisionZip) instead of by score.

    Returns:
        ``[sum(dominant + contextual), dim]``: image after image CLS, dominant patches in ascending patch order,
        contextual tokens in anchor order; and ``[images, patches]`` int64, the patches by descending score
        (the first ``dominant - 1`` of a row are the dominant ones). A member that is equally near to several anchors
        joins the first; sums are in float32, rounded once. Inputs may be strided views.
    """
    num_patches = score.shape[1]
    assert len(settings) == hidden.shape[0], f"{len(settings)=} {hidden.shape=}"
    for dominant, contextual, width in settings:
        assert dominant >= 1, f"{dominant=} does not hold CLS"
        assert dominant - 1 + contextual <= num_patches, f"{dominant=} {contextual=} {num_patches=}"
        assert min(contextual, width) >= 0, f"{contextual=} {width=}"
    counts = np.asarray(settings, dtype=np.int64).reshape(-1, 3)
    if runs_triton(hidden):
        return select_and_merge_triton(hidden, score, metric, counts)
    return _select_and_merge_reference(hidden, score, metric, counts)


def clusters(
    score: torch.Tensor, metric: torch.Tensor, settings: Sequence[tuple[int, int, int]]
) -> list[tuple[list[int], list[list[int]]]]:
    """What the tokens of :func:`select_and_merge` are made of, for someone to look at; waits for the device.

    Args:
        score, metric, settings: as there.

    Returns:
        Per image the dominant patches, ascending, and of every contextual token its patches, the anchor first and then
        the members, ascending.
    """
    pool = _form_pool(score, np.asarray(settings, dtype=np.int64).reshape(-1, 3))
    nearest = torch.where(pool.is_member, _nearest_anchor(metric, pool), -1)
    result = []
    for image, (dominant, contextual, _) in enumerate(settings):
        members = [(nearest[image] == slot).nonzero()[:, 0].tolist() for slot in range(contextual)]
        anchors = pool.anchors[image, :contextual].tolist()
        contents = [[anchor, *joined] for anchor, joined in zip(anchors, members, strict=True)]
        result.append((sorted(pool.by_score[image, : dominant - 1].tolist()), contents))
    return result


def _select_and_merge_reference(
    hidden: torch.Tensor, score: torch.Tensor, metric: torch.Tensor, settings: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    num_patches = score.shape[1]
    max_dominant, max_anchors = int(settings[:, 0].max(initial=1)) - 1, int(settings[:, 1].max(initial=0))
    pool = _form_pool(score, settings)
    place = torch.arange(num_patches, device=score.device).expand_as(pool.by_score)
    dominant_rows = torch.where(pool.is_dominant, place, num_patches - 1).sort(dim=1).values[:, :max_dominant] + 1
    contextual = _merge(hidden, metric, pool)
    tokens = torch.cat([hidden[:, :1], _take(hidden, dominant_rows), contextual], dim=1)
    packed = to_device(_packed_rows(settings, max_dominant, max_anchors), hidden.device, torch.int64)
    return tokens.flatten(0, 1).index_select(0, packed), pool.by_score


class _Pool(NamedTuple):
    """What becomes of every patch of a batch of images."""

    by_score: torch.Tensor  # [B, N] patches by descending score
    is_dominant: torch.Tensor  # [B, N]
    is_member: torch.Tensor  # [B, N] whether it joins an anchor
    anchors: torch.Tensor  # [B, max_anchors] patches, arbitrary past an image's own
    num_anchors: torch.Tensor  # [B, 1]


def _form_pool(score: torch.Tensor, settings: np.ndarray) -> _Pool:
    num_patches, max_anchors = score.shape[1], int(settings[:, 1].max(initial=0))
    counts = to_device(settings, score.device, torch.int64).unsqueeze(-1)  # [B, 3, 1]
    num_dominant, num_anchors, width = counts[:, 0] - 1, counts[:, 1], counts[:, 2]
    num_rest = num_patches - num_dominant
    pool_size = torch.where(width == 0, num_rest, (width * num_anchors).clamp(min=1).minimum(num_rest))
    step = (pool_size // num_anchors.clamp(min=1)).clamp(min=1)

    by_score = score.argsort(dim=1, descending=True, stable=True)  # [B, N]
    place = torch.arange(num_patches, device=score.device).expand_as(by_score)
    rank = torch.empty_like(by_score).scatter_(1, by_score, place)
    is_dominant = rank < num_dominant

    # A patch's place in the pool's order: by score the rest follows the dominant ones, by place it is counted.
    in_order = torch.where(width == 0, (~is_dominant).cumsum(dim=1) - 1, rank - num_dominant)
    in_pool = ~is_dominant & (in_order < pool_size)
    is_anchor = in_pool & (in_order % step == 0) & (in_order // step < num_anchors)

    rest_by_place = is_dominant.long().argsort(dim=1, stable=True)
    slots = torch.arange(max_anchors, device=rank.device) * step  # [B, max_anchors]
    by_place = rest_by_place.gather(1, slots.clamp(max=num_patches - 1))
    by_rank = by_score.gather(1, (slots + num_dominant).clamp(max=num_patches - 1))
    is_member = in_pool & ~is_anchor & (num_anchors > 0)
    return _Pool(by_score, is_dominant, is_member, torch.where(width == 0, by_place, by_rank), num_anchors)


def _merge(hidden: torch.Tensor, metric: torch.Tensor, pool: _Pool) -> torch.Tensor:
    """``hidden[anchor] + mean(hidden[members])``, ``[B, max_anchors, dim]``."""
    max_anchors = pool.anchors.shape[1]
    if max_anchors == 0:
        return hidden[:, :0]
    slots = torch.arange(max_anchors, device=hidden.device)
    nearest = _nearest_anchor(metric, pool)
    joins = ((nearest.unsqueeze(1) == slots[:, None]) & pool.is_member.unsqueeze(1)).float()  # [B, max_anchors, N]
    mean = joins @ hidden[:, 1:].float() / joins.sum(dim=-1, keepdim=True).clamp(min=1)
    return (_take(hidden, pool.anchors + 1).float() + mean).to(hidden.dtype)


def _nearest_anchor(metric: torch.Tensor, pool: _Pool) -> torch.Tensor:
    """The most similar of its image's anchors for every patch, ``[B, N]``; arbitrary where there is none."""
    if pool.anchors.shape[1] == 0:
        return torch.zeros_like(pool.by_score)
    unit = torch.nn.functional.normalize(metric[:, 1:].float(), dim=-1)
    similarity = unit @ _take(unit, pool.anchors).transpose(1, 2)  # [B, N, max_anchors]
    slots = torch.arange(pool.anchors.shape[1], device=unit.device)
    return similarity.masked_fill((slots >= pool.num_anchors).unsqueeze(1), -torch.inf).argmax(dim=-1)


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``rows [B, T, dim]`` at ``index [B, K]`` -> ``[B, K, dim]``."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _packed_rows(settings: np.ndarray, max_dominant: int, max_anchors: int) -> np.ndarray:
    """Which rows of the padded ``[B, 1 + max_dominant + max_anchors]`` tokens are real, image after image."""
    slot = np.arange(1 + max_dominant + max_anchors)
    dominant, contextual = settings[:, 0, None], settings[:, 1, None]
    return np.flatnonzero(np.where(slot < 1 + max_dominant, slot < dominant, slot - 1 - max_dominant < contextual))
