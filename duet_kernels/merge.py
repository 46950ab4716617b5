"""Stage 1 selection: keeps dominant patches as they are, and merges contextual tokens around anchors."""

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
    *,
    has_cls: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cut each image to its own number of tokens.

    Args:
        hidden: ``[images, 1 + patches, dim]``, CLS first; without CLS ``[images, patches, dim]``.
        score: ``[images, patches]`` float32; the highest are kept, ties go to the lower patch.
        metric: ``[images, 1 + patches, metric_dim]``, or without CLS as ``hidden``; compared by cosine similarity when
            members join anchors.
        settings: per image ``(dominant, contextual, cluster_width)``; ``dominant`` counts CLS, if there is
            one, and is at least 1; both counts together are at most the image's rows. Width 0 means no limit: all
            patches that are not dominant are candidates, and anchors are spread over them in patch order (VisionZip),
            not in score order.
        has_cls: whether the first row of an image is CLS, which always stays.

    Returns:
        Tokens ``[sum(dominant + contextual), dim]``, image after image: CLS, dominant patches in ascending patch order,
        contextual tokens in anchor order. Then ``[images, patches]`` int64: the patches by descending score; the
        first ``dominant``, less CLS, are the dominant ones. Then ``[sum(dominant + contextual)]`` int64: the patch that
        each token stands at, an anchor for a contextual token, -1 for CLS. A member that is equally near to several
        anchors joins the first. Sums are in float32 and rounded once. Inputs may be strided views.
    """
    num_patches, num_cls = score.shape[1], int(has_cls)
    assert len(settings) == hidden.shape[0], f"{len(settings)=} {hidden.shape=}"
    for dominant, contextual, width in settings:
        assert dominant >= 1, f"{dominant=} keeps nothing"
        assert dominant + contextual <= num_patches + num_cls, f"{dominant=} {contextual=} {num_patches=} {has_cls=}"
        assert min(contextual, width) >= 0, f"{contextual=} {width=}"
    counts = np.asarray(settings, dtype=np.int64).reshape(-1, 3)
    if runs_triton(hidden):
        return select_and_merge_triton(hidden, score, metric, counts, num_cls)
    return _select_and_merge_reference(hidden, score, metric, counts, num_cls)


def clusters(
    score: torch.Tensor, metric: torch.Tensor, settings: Sequence[tuple[int, int, int]], *, has_cls: bool = True
) -> list[tuple[list[int], list[list[int]]]]:
    """The patches behind each token of :func:`select_and_merge`, for traces. The host waits for the device.

    Args:
        score, metric, settings, has_cls: as for ``select_and_merge``.

    Returns:
        Per image the dominant patches, ascending, and the patches of each contextual token: the anchor first, then the
        members, ascending.
    """
    num_cls = int(has_cls)
    candidates = _find_candidates(score, np.asarray(settings, dtype=np.int64).reshape(-1, 3), num_cls)
    nearest = torch.where(candidates.is_member, _nearest_anchor(metric[:, num_cls:], candidates), -1)
    result = []
    for image, (dominant, contextual, _) in enumerate(settings):
        members = [(nearest[image] == slot).nonzero()[:, 0].tolist() for slot in range(contextual)]
        anchors = candidates.anchors[image, :contextual].tolist()
        contents = [[anchor, *joined] for anchor, joined in zip(anchors, members, strict=True)]
        result.append((sorted(candidates.by_score[image, : dominant - num_cls].tolist()), contents))
    return result


def _select_and_merge_reference(
    hidden: torch.Tensor, score: torch.Tensor, metric: torch.Tensor, settings: np.ndarray, num_cls: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_images, num_patches = score.shape
    max_copied, max_anchors = int(settings[:, 0].max(initial=num_cls)), int(settings[:, 1].max(initial=0))
    candidates = _find_candidates(score, settings, num_cls)
    patch = torch.arange(num_patches, device=score.device).expand_as(candidates.by_score)
    dominant = torch.where(candidates.is_dominant, patch, num_patches - 1).sort(dim=1).values[:, : max_copied - num_cls]
    cls, patches = hidden[:, :num_cls], hidden[:, num_cls:]
    contextual = _merge(patches, metric[:, num_cls:], candidates)
    tokens = torch.cat([cls, _take(patches, dominant), contextual], dim=1)
    places = torch.cat([dominant.new_full((num_images, num_cls), -1), dominant, candidates.anchors], dim=1)
    packed = to_device(_packed_rows(settings, max_copied, max_anchors), hidden.device, torch.int64)
    return (
        tokens.flatten(0, 1).index_select(0, packed),
        candidates.by_score,
        places.flatten().index_select(0, packed),
    )


class _Candidates(NamedTuple):
    """The role of every patch in a batch of images."""

    by_score: torch.Tensor  # [B, N] patches by descending score
    is_dominant: torch.Tensor  # [B, N]
    is_member: torch.Tensor  # [B, N] whether the patch joins an anchor
    anchors: torch.Tensor  # [B, max_anchors] patches; arbitrary past an image's number of anchors
    num_anchors: torch.Tensor  # [B, 1]


def _find_candidates(score: torch.Tensor, settings: np.ndarray, num_cls: int) -> _Candidates:
    """Which patches stay, which become anchors and which join an anchor.

    ============== ================================================ ========================
    cluster width  candidates, among the patches that do not stay   order of the candidates
    ============== ================================================ ========================
    W > 0          the W * contextual highest-scored                by descending score
    0, unlimited   all                                              by place (patch index)
    ============== ================================================ ========================

    In this order every ``step``-th candidate is an anchor, up to ``contextual`` anchors. All others are members.
    """
    num_patches, max_anchors = score.shape[1], int(settings[:, 1].max(initial=0))
    counts = to_device(settings, score.device, torch.int64).unsqueeze(-1)  # [B, 3, 1]
    num_dominant, num_anchors, width = counts[:, 0] - num_cls, counts[:, 1], counts[:, 2]
    is_unlimited = width == 0
    num_rest = num_patches - num_dominant
    num_candidates = torch.where(is_unlimited, num_rest, (width * num_anchors).clamp(min=1).minimum(num_rest))
    step = (num_candidates // num_anchors.clamp(min=1)).clamp(min=1)

    by_score = score.argsort(dim=1, descending=True, stable=True)  # [B, N]
    patch = torch.arange(num_patches, device=score.device).expand_as(by_score)
    rank = torch.empty_like(by_score).scatter_(1, by_score, patch)
    is_dominant = rank < num_dominant

    place = torch.where(is_unlimited, (~is_dominant).cumsum(dim=1) - 1, rank - num_dominant)  # among the rest
    is_candidate = ~is_dominant & (place < num_candidates)
    is_anchor = is_candidate & (place % step == 0) & (place // step < num_anchors)
    is_member = is_candidate & ~is_anchor & (num_anchors > 0)

    anchor_places = torch.arange(max_anchors, device=rank.device) * step  # [B, max_anchors]
    rest_in_order = is_dominant.long().argsort(dim=1, stable=True)
    unlimited_anchors = rest_in_order.gather(1, anchor_places.clamp(max=num_patches - 1))
    limited_anchors = by_score.gather(1, (anchor_places + num_dominant).clamp(max=num_patches - 1))
    anchors = torch.where(is_unlimited, unlimited_anchors, limited_anchors)
    return _Candidates(by_score, is_dominant, is_member, anchors, num_anchors)


def _merge(patches: torch.Tensor, metric: torch.Tensor, candidates: _Candidates) -> torch.Tensor:
    """``patches[anchor] + mean(patches[members])``, ``[B, max_anchors, dim]``."""
    max_anchors = candidates.anchors.shape[1]
    if max_anchors == 0:
        return patches[:, :0]
    slots = torch.arange(max_anchors, device=patches.device)
    nearest = _nearest_anchor(metric, candidates)
    is_nearest = nearest.unsqueeze(1) == slots[:, None]  # [B, max_anchors, N]
    joins = (is_nearest & candidates.is_member.unsqueeze(1)).float()
    mean = joins @ patches.float() / joins.sum(dim=-1, keepdim=True).clamp(min=1)
    return (_take(patches, candidates.anchors).float() + mean).to(patches.dtype)


def _nearest_anchor(metric: torch.Tensor, candidates: _Candidates) -> torch.Tensor:
    """For every patch the most similar anchor of its image, ``[B, N]``; arbitrary if the image has no anchor."""
    if candidates.anchors.shape[1] == 0:
        return torch.zeros_like(candidates.by_score)
    unit = torch.nn.functional.normalize(metric.float(), dim=-1)
    similarity = unit @ _take(unit, candidates.anchors).transpose(1, 2)  # [B, N, max_anchors]
    slots = torch.arange(candidates.anchors.shape[1], device=unit.device)
    return similarity.masked_fill((slots >= candidates.num_anchors).unsqueeze(1), -torch.inf).argmax(dim=-1)


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``rows [B, T, dim]`` at ``index [B, K]`` -> ``[B, K, dim]``."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _packed_rows(settings: np.ndarray, max_copied: int, max_anchors: int) -> np.ndarray:
    """The indices of the real rows in the padded ``[B, max_copied + max_anchors]`` tokens, image after image."""
    slot = np.arange(max_copied + max_anchors)
    dominant, contextual = settings[:, 0, None], settings[:, 1, None]
    return np.flatnonzero(np.where(slot < max_copied, slot < dominant, slot - max_copied < contextual))
