"""Stage 1 (vision to vision) on a Hugging Face CLIP tower, differentiable in the tokens that it keeps and merges.

Autograd treats the choice itself as a constant. Source: DUET-VLM (arXiv 2602.18846).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from duet_kernels import cls_score, implementation, select_and_merge
from duet_server.plan import CompressionSettings


class EncodedImages(NamedTuple):
    """The outputs of a tower's feature layer for a batch of images; CLS is row 0."""

    hidden: Tensor
    """[images, 1 + N, Dv], the layer's output."""
    query: Tensor
    """[images, 1 + N, heads, d], its raw queries, detached."""
    key: Tensor
    """[images, 1 + N, heads, d], its raw keys, detached."""


def encode(tower: nn.Module, pixel_values: Tensor, num_layers: int) -> EncodedImages:
    """Run the first ``num_layers`` layers of a CLIP tower, at least one, on pixels ``[images, 3, H, W]``."""
    layers = tower.encoder.layers
    assert num_layers >= 1, f"{num_layers=}: the embeddings have no attention to rank patches"
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in layers[: num_layers - 1]:
        hidden = layer(hidden, attention_mask=None)
    last = layers[num_layers - 1]
    with _outputs_of(last.self_attn.q_proj, last.self_attn.k_proj) as outputs:
        hidden = last(hidden, attention_mask=None)
    query, key = (outputs[name].unflatten(-1, (-1, last.self_attn.head_dim)) for name in range(2))
    return EncodedImages(hidden, query, key)


def compress(images: EncodedImages, settings: CompressionSettings) -> tuple[Tensor, Tensor | None]:
    """The visual tokens before the projector ``[images * entering, Dv]``, and each image's patches by descending score.

    With stage 1 off, the tokens are all patches without CLS, and the ranking is None.
    """
    if settings.dominant is None:
        return images.hidden[:, 1:].flatten(0, 1), None
    counts = (int(settings.dominant), int(settings.contextual), settings.cluster_width or 0)
    hidden = images.hidden
    # In float32 even under autocast, as in the engine. Only the plain torch reference supports autograd.
    with torch.autocast(hidden.device.type, enabled=False), implementation("reference"):
        score = cls_score(images.query[:, 0], images.key, images.key.shape[-1] ** -0.5)
        tokens, by_score, _ = select_and_merge(hidden, score, images.key.float().mean(dim=2), [counts] * len(hidden))
        return tokens, by_score


@contextmanager
def _outputs_of(*modules: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collects the modules' outputs during the ``with`` block, detached, by the module's index."""
    outputs: dict[int, Tensor] = {}

    def keep(idx: int) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[idx] = output.detach()

        return modules[idx].register_forward_hook(hook)

    handles = [keep(idx) for idx in range(len(modules))]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
