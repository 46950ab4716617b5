"""Stage 1 selection: dominant patches kept as they are, contextual tokens merged around anchors."""

from collections.abc import Sequence

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


def _select_and_merge_reference(
    hidden: torch.Tensor, score: torch.Tensor, metric: torch.Tensor, settings: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    num_patches = score.shape[1]
    counts = to_device(settings, score.device, torch.int64).unsqueeze(-1)  # [B, 3, 1]
    num_dominant, num_anchors, width = counts[:, 0] - 1, counts[:, 1], counts[:, 2]
    max_dominant, max_anchors = int(settings[:, 0].max(initial=1)) - 1, int(settings[:, 1].max(initial=0))

    by_score = score.argsort(dim=1, descending=True, stable=True)  # [B, N]
    place = torch.arange(num_patches, device=score.device).expand_as(by_score)
    rank = torch.empty_like(by_score).scatter_(1, by_score, place)
    is_dominant = rank < num_dominant
    dominant_rows = torch.where(is_dominant, place, num_patches - 1).sort(dim=1).values[:, :max_dominant] + 1

    anchors, is_member = _form_pool(by_score, rank, is_dominant, num_dominant, num_anchors, width, max_anchors)
    contextual = _merge(hidden, metric, anchors, is_member, num_anchors)
    tokens = torch.cat([hidden[:, :1], _take(hidden, dominant_rows), contextual], dim=1)
    packed = to_device(_packed_rows(settings, max_dominant, max_anchors), hidden.device, torch.int64)
    return tokens.flatten(0, 1).index_select(0, packed), by_score


def _form_pool(
    by_score: torch.Tensor,
    rank: torch.Tensor,
    is_dominant: torch.Tensor,
    num_dominant: torch.Tensor,
    num_anchors: torch.Tensor,
    width: torch.Tensor,
    max_anchors: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors' patches ``[B, max_anchors]``, arbitrary past an image's own; and which patches join one, ``[B, N]``."""
    num_patches = by_score.shape[1]
    num_rest = num_patches - num_dominant
    pool_size = torch.where(width == 0, num_rest, (width * num_anchors).clamp(min=1).minimum(num_rest))
    step = (pool_size // num_anchors.clamp(min=1)).clamp(min=1)

    # A patch's place in the pool's order: by score the rest follows the dominant ones, by place it is counted.
    in_order = torch.where(width == 0, (~is_dominant).cumsum(dim=1) - 1, rank - num_dominant)
    in_pool = ~is_dominant & (in_order < pool_size)
    is_anchor = in_pool & (in_order % step == 0) & (in_order // step < num_anchors)

    rest_by_place = is_dominant.long().argsort(dim=1, stable=True)
    slots = torch.arange(max_anchors, device=rank.device) * step  # [B, max_anchors]
    by_place = rest_by_place.gather(1, slots.clamp(max=num_patches - 1))
    by_rank = by_score.gather(1, (slots + num_dominant).clamp(max=num_patches - 1))
    return torch.where(width == 0, by_place, by_rank), in_pool & ~is_anchor & (num_anchors > 0)


def _merge(
    hidden: torch.Tensor,
    metric: torch.Tensor,
    anchors: torch.Tensor,
    is_member: torch.Tensor,
    num_anchors: torch.Tensor,
) -> torch.Tensor:
    """``hidden[anchor] + mean(hidden[members])``, ``[B, max_anchors, dim]``; a member joins its most similar anchor."""
    max_anchors = anchors.shape[1]
    if max_anchors == 0:
        return hidden[:, :0]
    unit = torch.nn.functional.normalize(metric[:, 1:].float(), dim=-1)
    similarity = unit @ _take(unit, anchors).transpose(1, 2)  # [B, N, max_anchors]
    slots = torch.arange(max_anchors, device=anchors.device)
    nearest = similarity.masked_fill((slots >= num_anchors).unsqueeze(1), -torch.inf).argmax(dim=-1)
    joins = ((nearest.unsqueeze(1) == slots[:, None]) & is_member.unsqueeze(1)).float()  # [B, max_anchors, N]
    mean = joins @ hidden[:, 1:].float() / joins.sum(dim=-1, keepdim=True).clamp(min=1)
    return (_take(hidden, anchors + 1).float() + mean).to(hidden.dtype)


def _take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``rows [B, T, dim]`` at ``index [B, K]`` -> ``[B, K, dim]``."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _packed_rows(settings: np.ndarray, max_dominant: int, max_anchors: int) -> np.ndarray:
    """Which rows of the padded ``[B, 1 + max_dominant + max_anchors]`` tokens are real, image after image."""
    slot = np.arange(1 + max_dominant + max_anchors)
    dominant, contextual = settings[:, 0, None], settings[:, 1, None]
    return np.flatnonzero(np.where(slot < 1 + max_dominant, slot < dominant, slot - 1 - max_dominant < contextual))
