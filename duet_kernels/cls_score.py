"""Stage 1 score: the attention that CLS pays to each patch (algorithm: DUET-VLM, arXiv 2602.18846, section on V2V)."""

import torch


def cls_score(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of one query row over all keys of one layer, summed over heads; no attention matrix is built.

    Args:
        query: ``[images, heads, head_dim]``, the CLS row's query.
        key: ``[images, 1 + patches, heads, head_dim]``, CLS first.
        scale: what the layer multiplies its logits by, ``head_dim ** -0.5``.

    Returns:
        ``[images, patches]`` float32: softmax over all keys, CLS's own column left out.
    """
    logits = torch.einsum("bhd,bthd->bht", query.float(), key.float()) * scale
    return logits.softmax(dim=-1).sum(dim=1)[:, 1:]
