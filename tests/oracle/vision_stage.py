"""Stage 1 (vision to vision): keep the patches to which CLS attends most, and merge clusters of the others.

Autograd treats selections as constants; gradients flow through the features that are kept or merged.
Source: the published code of DUET-VLM (arXiv 2602.18846).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class TowerFeatures(NamedTuple):
    """Stage 1's inputs for one image, all from the tower's selected layer; CLS is row 0."""

    hidden: Tensor
    """[1 + N, Dv], that layer's output."""
    score: Tensor
    """[N], attention of CLS to each patch, summed over heads."""
    metric: Tensor
    """[1 + N, d], raw keys (with bias, unscaled), mean over heads."""


class CompressedImage(NamedTuple):
    features: Tensor
    """[D + C, Dv]: CLS, dominant patches in patch order, contextual tokens in anchor order."""
    dominant_patch_indices: list[int]
    """D - 1 patches, highest score first."""


def tower_features(tower: nn.Module, pixel_values: Tensor, feature_layer: int) -> TowerFeatures:
    """Run a Hugging Face CLIP tower on one image `[3, H, W]`, up to `feature_layer`.

    `feature_layer` counts as `vision_feature_layer` does: 0 is the embeddings, -1 the last layer's output.
    """
    layers = tower.encoder.layers
    num_layers_run = feature_layer % (len(layers) + 1)
    assert num_layers_run >= 1, f"no layer produces vision_feature_layer={feature_layer}"
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values[None]))
    for layer in layers[: num_layers_run - 1]:
        hidden = layer(hidden, attention_mask=None)
    selected = layers[num_layers_run - 1]
    score, metric = _score_and_metric(selected, hidden[0])
    return TowerFeatures(selected(hidden, attention_mask=None)[0], score, metric)


@torch.no_grad()
def _score_and_metric(layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    keys = attention.k_proj(normed).unflatten(-1, (attention.num_heads, -1))  # [1 + N, heads, d]
    cls_query = attention.q_proj(normed[0]).unflatten(-1, (attention.num_heads, -1))  # [heads, d]
    logits = torch.einsum("hd,nhd->hn", cls_query, keys) * attention.head_dim**-0.5
    weights = logits.softmax(dim=-1, dtype=torch.float32)
    return weights.sum(dim=0)[1:], keys.mean(dim=1)


def compress(image: TowerFeatures, dominant: int, contextual: int, cluster_width: int | None) -> CompressedImage:
    """Reduce one image to `dominant` (CLS included) + `contextual` tokens.

    `cluster_width` None: every other patch joins a cluster and anchors are spread by place (VisionZip).
    Equal scores rank the lower patch first. Raises ValueError for counts that the image cannot fill.
    """
    num_patches = len(image.score)
    if dominant < 1 or contextual < 0 or dominant - 1 + contextual > num_patches:
        raise ValueError(f"{dominant=} (CLS included) and {contextual=} do not fit {num_patches} patches")
    ranking = image.score.sort(descending=True, stable=True).indices
    dominant_patches, rest = ranking[: dominant - 1], ranking[dominant - 1 :]
    in_place_order = dominant_patches.sort().values
    features = [image.hidden[:1], image.hidden[1 + in_place_order]]
    if contextual:
        pool = rest.sort().values if cluster_width is None else rest[: max(1, cluster_width * contextual)]
        features.append(merge(image.hidden[1:], image.metric[1:], pool, contextual))
    return CompressedImage(torch.cat(features), dominant_patches.tolist())


def merge(hidden: Tensor, metric: Tensor, pool: Tensor, num_anchors: int) -> Tensor:
    """Merge the pool's patches around evenly spread anchors: `[num_anchors, Dv]`, anchor + mean of its members.

    `hidden [N, Dv]`, `metric [N, d]`, `pool [P]` patch indices in the order in which anchors are picked.
    """
    step = max(1, len(pool) // num_anchors)
    is_anchor = torch.zeros(len(pool), dtype=torch.bool, device=pool.device)
    is_anchor[: step * num_anchors : step] = True
    anchors, members = pool[is_anchor], pool[~is_anchor]
    directions = nn.functional.normalize(metric.detach(), dim=-1)
    nearest = (directions[members] @ directions[anchors].T).argmax(dim=-1)  # [members]
    belongs = nn.functional.one_hot(nearest, num_anchors).T.to(hidden.dtype)  # [anchors, members]
    sizes = belongs.sum(dim=-1, keepdim=True).clamp(min=1)
    return hidden[anchors] + belongs @ hidden[members] / sizes
