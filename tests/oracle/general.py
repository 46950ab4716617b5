"""Both stages on transformers' own modules, for any vision-language model: dense, one prompt at a time, float32.

A family (a subclass of :class:`Oracle`) says what its tower makes of a picture. The choice of tokens, the positions and
the decoder are the same for all. Nothing here knows vLLM or the kernels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

Counts = Callable[[int], tuple[int, int, int] | None]
"""(D, C, W) of a unit of so many tokens; None if it stays whole."""


@dataclass(frozen=True)
class Encoded:
    """A unit as the tower makes it: a picture or a tile of it."""

    rows: Tensor  # [n, width], as they enter the language model
    score: Tensor  # [n]; the highest stay
    metric: Tensor  # [n, any], compared by cosine
    grid: tuple[int, int]
    cls: Tensor | None = None  # [width], of a tower whose class token enters with the rows that stay


@dataclass(frozen=True)
class Generated:
    tokens: list[int]
    logits: Tensor  # [tokens, vocabulary]
    places: list[list[int]]  # for each unit, the tokens that its rows stand at
    kept_rows: list[list[int]]  # for each boundary, the rows of the compressed prompt that pass it
    num_prompt: int  # rows that enter the decoder


def choose(unit: Encoded, counts: tuple[int, int, int] | None) -> tuple[Tensor, list[int]]:
    """The rows that stay, and the tokens that they stand at: dominant ones, and anchors with what was merged into them.

    They are in the order of their places. With a class token, which D counts, the order is the authors': the class
    token (at -1), dominant rows by place, contextual rows in the order of their anchors.
    """
    num_tokens, num_cls = len(unit.score), int(unit.cls is not None)
    if counts is None or (not num_cls and counts[0] + counts[1] >= num_tokens):
        return unit.rows, list(range(num_tokens))
    dominant, contextual, width = counts[0] - num_cls, *counts[1:]
    ranking = sorted(range(num_tokens), key=lambda token: (-unit.score[token].item(), token))
    chosen, rest = ranking[:dominant], ranking[dominant:]
    pool = rest[: max(1, width * contextual)] if width else sorted(rest)
    anchors = pool[:: max(1, len(pool) // max(1, contextual))][:contextual]
    members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    for token in pool:
        if anchors and token not in members:
            likeness = [nn.functional.cosine_similarity(unit.metric[token], unit.metric[a], dim=0) for a in anchors]
            members[anchors[int(torch.stack(likeness).argmax())]].append(token)
    rows = unit.rows.clone()
    for anchor, joined in members.items():
        if joined:
            rows[anchor] = unit.rows[anchor] + unit.rows[joined].mean(dim=0)
    if unit.cls is not None:
        places = [*sorted(chosen), *anchors]
        return torch.cat([unit.cls[None], rows[places]]), [-1, *places]
    places = sorted({*chosen, *anchors})
    return rows[places], places


def received(query: Tensor, key: Tensor) -> Tensor:
    """The attention that each of n rows receives, ``[n]``: mean over heads, sum over queries ``[n, heads, d]``."""
    logits = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=0).sum(dim=0)


class Oracle(ABC):
    """A checkpoint under compression."""

    keeps_positions = False
    around_image: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # tokens that enter before and behind a picture

    def __init__(self, checkpoint: Any) -> None:
        load = AutoModelForImageTextToText.from_pretrained
        self.model = load(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.decoder = self.model.model.language_model

    @property
    def image_token_id(self) -> int:
        return self.model.config.image_token_id

    @abstractmethod
    def encode(self, image: Image.Image) -> list[Encoded]:
        """The units of a picture."""

    def finish(self, rows: Tensor) -> Tensor:
        """What the model does to rows behind the cut."""
        return rows

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Sequence[int],
        images: Sequence[Image.Image],
        *,
        counts: Counts = lambda num_tokens: None,
        boundaries: Sequence[int] = (),
        keep: Sequence[float] = (),
        guide: str = "all",
        max_new_tokens: int = 12,
    ) -> Generated:
        """Greedy tokens of a prompt with one image token for each picture; no token ends it.

        ``guide`` is ``all`` or ``last``.
        """
        assert guide in ("all", "last"), guide
        prompt = _Prompt(self, input_ids, [self.encode(image) for image in images], counts)
        tokens: list[int] = []
        logits = []
        for _ in range(max_new_tokens):
            hidden = prompt.run(boundaries, keep, guide, tokens)
            logits.append(self.model.lm_head(self.decoder.norm(hidden))[-1])
            tokens.append(int(logits[-1].argmax()))
        return Generated(tokens, torch.stack(logits), prompt.places, prompt.kept_rows, len(prompt.hidden))


class _Prompt:
    """A compressed prompt, and the rows that its first run kept at each boundary."""

    def __init__(
        self, oracle: Oracle, input_ids: Sequence[int], pictures: Sequence[Sequence[Encoded]], counts: Counts
    ) -> None:
        self.oracle = oracle
        self.size = oracle.decoder.embed_tokens.embedding_dim
        self.places: list[list[int]] = []
        self.kept_rows: list[list[int]] = []
        rows: list[Tensor] = []
        positions: list[tuple[int, int, int]] = []
        is_visual: list[bool] = []
        remaining, position = iter(pictures), 0

        def add_text(words: Sequence[int]) -> None:
            nonlocal position
            for word in words:
                rows.append(oracle.decoder.embed_tokens(torch.tensor([word])))
                positions.append((position,) * 3)
                is_visual.append(False)
                position += 1

        for token in input_ids:
            is_image = token == oracle.image_token_id
            before, after = oracle.around_image if is_image else ((token,), ())
            add_text(before)
            for unit in next(remaining) if is_image else ():
                kept, places = choose(unit, counts(len(unit.score)))
                rows.append(oracle.finish(kept))
                columns = unit.grid[1]
                positions += [(position, position + p // columns, position + p % columns) for p in places]
                is_visual += [True] * len(places)
                self.places.append(places)
                position += max(unit.grid)
            add_text(after)
        width = max(row.shape[1] for row in rows)
        padded = torch.cat([nn.functional.pad(row, (0, width - row.shape[1])) for row in rows])
        self.hidden, *levels = padded.split(self.size, dim=1)  # a visual row may carry more: Qwen3-VL's DeepStack
        self.levels = levels
        self.positions = torch.tensor(positions).T  # [3, rows]
        self.next_position = position
        self.is_visual = is_visual
        edges = [row for row, (a, b) in enumerate(zip([False, *is_visual], [*is_visual, False], strict=True)) if a != b]
        self.pools = list(zip(edges[::2], edges[1::2], strict=True))

    def run(self, boundaries: Sequence[int], keep: Sequence[float], guide: str, tokens: Sequence[int]) -> Tensor:
        """The last layer's output for the rows that it holds, the generated tokens at the end."""
        decoder, num_prompt = self.oracle.decoder, len(self.hidden)
        hidden, levels = self.hidden, self.levels
        if tokens:
            more = decoder.embed_tokens(torch.tensor(tokens))
            hidden = torch.cat([hidden, more])
            levels = [torch.cat([level, torch.zeros_like(more)]) for level in levels]
        held = list(range(num_prompt))
        for layer_idx, layer in enumerate(decoder.layers):
            if layer_idx in boundaries and keep:
                boundary = list(boundaries).index(layer_idx)
                if not tokens:
                    self.kept_rows.append(self._survivors(layer, hidden, held, keep[boundary], guide))
                kept = self.kept_rows[boundary]
                places = [held.index(row) for row in kept] + list(range(len(held), len(hidden)))
                hidden, held = hidden[places], kept
            rotary, mask = self._rotary(held, len(tokens)), _causal(len(hidden))
            output = layer(hidden[None], attention_mask=mask, position_embeddings=rotary)
            hidden = (output[0] if isinstance(output, tuple) else output).view(len(hidden), -1)
            if layer_idx < len(levels):
                assert len(hidden) == len(levels[layer_idx]), "no token may drop before the last level is added"
                hidden = hidden + levels[layer_idx]
        return hidden

    def _survivors(self, layer: Any, hidden: Tensor, held: list[int], share: float, guide: str) -> list[int]:
        """The rows of the prompt that pass a boundary, by the layer's own attention."""
        rotary, mask = self._rotary(held, 0), _causal(len(held))
        normed = layer.input_layernorm(hidden[None])
        _, weights = layer.self_attn(hidden_states=normed, attention_mask=mask, position_embeddings=rotary)
        attention = weights[0].mean(dim=0)  # [rows, rows]
        text = [idx for idx, row in enumerate(held) if not self.is_visual[row]]
        dropped: set[int] = set()
        for start, end in self.pools:
            guides = [idx for idx in text if held[idx] >= end] if guide == "all" else [len(held) - 1]
            score = attention[guides].mean(dim=0)
            pool = [idx for idx, row in enumerate(held) if start <= row < end]
            ranking = sorted(pool, key=lambda idx: (-score[idx].item(), idx))
            dropped.update(held[idx] for idx in ranking[math.floor((end - start) * share) :])
        return [row for row in held if row not in dropped]

    def _rotary(self, held: Sequence[int], num_generated: int) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin of the held rows and of the generated tokens behind them."""
        rotary = self.oracle.decoder.rotary_emb
        if not self.oracle.keeps_positions:
            return rotary(self.hidden, torch.arange(len(held) + num_generated)[None])
        behind = torch.arange(self.next_position, self.next_position + num_generated).expand(3, -1)
        return rotary(self.hidden, torch.cat([self.positions[:, held], behind], dim=1)[:, None])


def _causal(num_rows: int) -> Tensor:
    return torch.full((num_rows, num_rows), torch.finfo(torch.float32).min).triu(1)[None, None]
