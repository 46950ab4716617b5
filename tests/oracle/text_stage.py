"""Stage 2 (text to vision): between two decoder layers, keep the visual tokens to which the guiding text attends most.

Rows of the prompt are numbered as they enter the language model. Autograd treats selections as constants.
Source: the published code of DUET-VLM (arXiv 2602.18846).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

Span = tuple[int, int]
"""Half-open range of prompt rows."""


def visual_pools(is_visual: Sequence[bool]) -> list[Span]:
    """Runs of visual rows. Tokens with no text between them are ranked together."""
    padded = [False, *is_visual, False]
    edges = [row for row in range(len(padded) - 1) if padded[row] != padded[row + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def resolve_guiding_rows(text: str | Sequence[int], pools: Sequence[Span], num_rows: int) -> list[int]:
    """Prompt rows that guide, ascending: "all" text after the first pool, the "last" row, or the given rows."""
    visual = {row for start, end in pools for row in range(start, end)}
    if text == "last":
        return [num_rows - 1]
    if text == "all":
        first_text = pools[0][1] if pools else 0
        return [row for row in range(first_text, num_rows) if row not in visual]
    if isinstance(text, str):
        raise ValueError(f'guiding_rows is {text!r}; it takes "all", "last" or a list of prompt rows')
    rows = sorted(set(text))
    if any(row in visual or not 0 <= row < num_rows for row in rows):
        raise ValueError(f"guiding_rows {rows} must be text rows in [0, {num_rows})")
    return rows


@torch.no_grad()
def guided_attention(
    layer: nn.Module, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], guiding: Sequence[int]
) -> Tensor:
    """Attention `[G, n]` of a Llama layer from the `guiding` rows to all rows, averaged over heads.

    `hidden [1, n, D]` enters the layer; `position_embeddings` are rotary cos and sin of its n rows.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    queries = attention.q_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # [1, heads, n, d]
    keys = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # [1, kv_heads, n, d]
    queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
    keys = keys.repeat_interleave(attention.num_key_value_groups, dim=1)
    rows = torch.as_tensor(guiding, device=hidden.device)
    logits = queries[0, :, rows] @ keys[0].transpose(-1, -2) * attention.head_dim**-0.5  # [heads, G, n]
    is_future = torch.arange(hidden.shape[1], device=hidden.device) > rows[:, None]
    return logits.masked_fill(is_future, float("-inf")).softmax(dim=-1, dtype=torch.float32).mean(dim=0)


def kept_rows(
    attention: Tensor, guiding: Sequence[int], rows: Sequence[int], pools: Sequence[Span], keep: float
) -> list[int]:
    """Which of the current rows survive, ascending: all text, and `floor(len(pool) * keep)` of each pool.

    `attention [G, len(rows)]` belongs to the prompt rows `guiding`; `rows` are the prompt rows still held.
    A pool is ranked by the guiding rows after it; equal scores rank the lower row first.
    """
    dropped: set[int] = set()
    for start, end in pools:
        held = [idx for idx, row in enumerate(rows) if start <= row < end]
        num_kept = math.floor((end - start) * keep)
        assert num_kept <= len(held), f"keeps must not increase: {num_kept=} of {len(held)}"
        if num_kept == len(held):
            continue
        guides = [idx for idx, row in enumerate(guiding) if row >= end]
        if not guides:
            raise ValueError(f"no guiding row follows the visual tokens [{start}, {end})")
        scores = attention[guides][:, held].mean(dim=0)
        ranking = scores.sort(descending=True, stable=True).indices.tolist()
        dropped.update(held[rank] for rank in ranking[num_kept:])
    return [idx for idx in range(len(rows)) if idx not in dropped]
