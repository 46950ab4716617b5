"""Stage 1: cuts the output of a CLIP tower to the dominant and contextual tokens of each image."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from duet_kernels import cls_score, select_and_merge, to_device
from duet_server.engine.vllm_internals import tensor_model_parallel_all_gather
from duet_server.plan.wire import Stage1Counts


def encode(
    tower: Any, pixel_values: torch.Tensor, clock: AbstractContextManager[None]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run vLLM's ``CLIPVisionTransformer``, and compute the inputs of stage 1 from its last layer.

    Args:
        tower: the tower up to the selected feature layer, without post-norm, as vLLM's LLaVA builds it.
        pixel_values: ``[images, 3, height, width]``.
        clock: measures the work that an uncompressed image does not need.

    Returns:
        hidden ``[images, 1 + patches, dim]`` with CLS first; score ``[images, patches]``; metric
        ``[images, 1 + patches, head_dim]``, the layer's keys averaged over heads.
    """
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    *layers, last = tower.encoder.layers
    for layer in layers:
        hidden = layer(hidden)

    attention = last.self_attn
    qkv, _ = attention.qkv_proj(last.layer_norm1(hidden))
    query, key, value = qkv.chunk(3, dim=-1)
    output, _ = attention.out_proj(attention.attn(query, key, value))
    hidden = hidden + output
    hidden = hidden + last.mlp(last.layer_norm2(hidden))

    with clock:
        keys = key.unflatten(-1, (-1, attention.head_dim))  # [B, 1 + N, heads, d]
        cls_query = query[:, 0].unflatten(-1, (-1, attention.head_dim))
        score = _sum_over_ranks(cls_score(cls_query, keys, attention.scale), attention.tp_size)
        metric = _sum_over_ranks(keys.float().sum(dim=2), attention.tp_size) / attention.num_heads
    return hidden, score, metric


def cut(
    hidden: torch.Tensor, score: torch.Tensor, metric: torch.Tensor, counts: Sequence[Stage1Counts | None]
) -> list[torch.Tensor]:
    """The tokens of each image for the projector, ``[tokens, dim]``; without counts all patches and no CLS."""
    chosen = [idx for idx, count in enumerate(counts) if count is not None]
    result = [image[1:] for image in hidden]
    if chosen:
        settings = [count for count in counts if count is not None]
        images = to_device(chosen, hidden.device, torch.int64)
        hidden, score, metric = (tensor.index_select(0, images) for tensor in (hidden, score, metric))
        packed, _ = select_and_merge(hidden, score, metric, settings)
        for idx, tokens in zip(chosen, packed.split([count.num_entering for count in settings]), strict=True):
            result[idx] = tokens
    return result


def _sum_over_ranks(per_rank: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """Add the parts that tensor-parallel ranks computed for their own heads; bit-identical on every rank."""
    if num_ranks == 1:
        return per_rank
    return tensor_model_parallel_all_gather(per_rank, dim=0).unflatten(0, (num_ranks, -1)).sum(dim=0)
