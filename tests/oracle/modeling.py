"""DUET's two stages around a Hugging Face LLaVA: a differentiable prefill, and greedy decoding with pruned caches.

It runs one sequence at a time, without fused operations. Faster code is tested against it, so it shares no code with
that code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel, DynamicCache, LlamaModel, LlavaForConditionalGeneration

from tests.oracle.text_stage import Span, guided_attention, kept_rows, resolve_guiding_rows, visual_pools
from tests.oracle.vision_stage import CompressedImage, compress, tower_features


@dataclass(frozen=True)
class DuetSettings:
    """The defaults switch both stages off."""

    dominant: int | None = None
    """Tokens per image kept as they are, CLS included; None: stage 1 is off and all patches enter, without CLS."""
    contextual: int = 0
    cluster_width: int | None = 4
    """None: every patch that is not dominant joins a cluster."""
    boundaries: Sequence[int] = ()
    """Ascending decoder layers before which visual tokens drop."""
    keep: Sequence[float] = ()
    """One share per boundary, non-increasing, of the visual tokens that entered the language model."""
    guiding_rows: str | Sequence[int] = "all"
    """All text after the first image ("all"), the "last" row, or rows of the prompt with its images expanded."""

    def __post_init__(self) -> None:
        if len(self.keep) != len(self.boundaries):
            raise ValueError(f"keep has {len(self.keep)} values for {len(self.boundaries)} boundaries")
        if any(following > share for share, following in pairwise([1.0, *self.keep, 0.0])):
            raise ValueError(f"keep is {list(self.keep)}; shares must lie in [0, 1] and not increase")


@dataclass(frozen=True)
class Prefill:
    """The result of a prompt of n rows. The last segment holds m of them."""

    stage1_features: list[Tensor]
    """Per image `[D + C, Dv]`, or `[N, Dv]` with stage 1 off; before the projector."""
    dominant_patch_indices: list[list[int]]
    """Per image, highest score first, without CLS; empty with stage 1 off."""
    projected: Tensor
    """`[n, hidden]`, the sequence that enters the decoder."""
    kept_rows_per_stage: list[list[int]]
    """Per boundary, rows of the sequence that enters it."""
    segment_rows: list[list[int]]
    """Per segment, the prompt rows it holds."""
    kv_lens_per_layer: list[int]
    row_logits: Tensor
    """`[m, vocab]`, one row per row of the last segment."""
    cache: DynamicCache
    """Keys and values per decoder layer; decoding appends to it."""


@dataclass(frozen=True)
class Generation(Prefill):
    logits: Tensor
    """`[max_new_tokens, vocab]`; row i chose `tokens[i]`."""
    tokens: list[int]


class DuetLlava:
    """Runs a LLaVA with a CLIP tower and a Llama decoder with DUET's stages. It does not change the model."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        config = model.config
        tower, decoder = model.model.vision_tower, model.model.language_model
        if not isinstance(tower, CLIPVisionModel) or not isinstance(decoder, LlamaModel):
            raise ValueError(f"needs a CLIP tower and a Llama decoder, got {type(tower)} and {type(decoder)}")
        if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != "default":
            raise ValueError('needs one vision_feature_layer and vision_feature_select_strategy "default"')
        self.model = model
        self.tower, self.decoder = tower, decoder
        self.projector = model.model.multi_modal_projector

    @classmethod
    def from_pretrained(cls, path: str | Path) -> DuetLlava:
        """Load a `llava-hf` checkpoint in float32, for inference."""
        return cls(LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval())

    def prefill(
        self, input_ids: Sequence[int] | Tensor, pixel_values: Sequence[Tensor] | Tensor, settings: DuetSettings
    ) -> Prefill:
        """Run one prompt. Differentiable in `pixel_values` and in all weights that it uses.

        `input_ids [n]` has, for each image, one image token or as many as its entering visual tokens. `pixel_values`
        are the images `[3, H, W]`, in order. Raises ValueError if the two do not match, if the model cannot serve the
        settings, and if visual tokens must be dropped but no guiding row follows them.
        """
        images = [self._compress(torch.as_tensor(image), settings) for image in pixel_values]
        embeds, pools = self._embed(torch.as_tensor(input_ids).flatten().tolist(), images)
        cache = DynamicCache(config=self.decoder.config)
        hidden, kept, segment_rows = self._run_segments(embeds[None], pools, settings, cache)
        num_layers = len(self.decoder.layers)
        return Prefill(
            stage1_features=[image.features for image in images],
            dominant_patch_indices=[image.dominant_patch_indices for image in images],
            projected=embeds,
            kept_rows_per_stage=kept,
            segment_rows=segment_rows,
            kv_lens_per_layer=[cache.get_seq_length(layer_idx) for layer_idx in range(num_layers)],
            row_logits=self._logits(hidden),
            cache=cache,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Sequence[int] | Tensor,
        pixel_values: Sequence[Tensor] | Tensor,
        max_new_tokens: int = 12,
        **settings: Any,
    ) -> Generation:
        """Greedy decoding that ignores EOS. `settings` are fields of `DuetSettings`; the rest is as in `prefill`."""
        duet_settings = DuetSettings(**settings)
        prefill = self.prefill(input_ids, pixel_values, duet_settings)
        logits = [prefill.row_logits[-1]]
        while len(logits) < max_new_tokens:
            logits.append(self._decode(logits[-1].argmax(), prefill.cache, duet_settings.boundaries))
        tokens = [int(step.argmax()) for step in logits]
        return Generation(**vars(prefill), logits=torch.stack(logits), tokens=tokens)

    def _compress(self, pixel_values: Tensor, settings: DuetSettings) -> CompressedImage:
        weight = self.tower.embeddings.patch_embedding.weight
        pixel_values = pixel_values.to(weight.device, weight.dtype)
        image = tower_features(self.tower, pixel_values, self.model.config.vision_feature_layer)
        if settings.dominant is None:
            return CompressedImage(image.hidden[1:], [])
        return compress(image, settings.dominant, settings.contextual, settings.cluster_width)

    def _embed(self, input_ids: list[int], images: Sequence[CompressedImage]) -> tuple[Tensor, list[Span]]:
        """The sequence that enters the decoder `[n, hidden]`, and where its visual tokens lie."""
        image_token_id = self.model.config.image_token_id
        input_ids = _expand_images(input_ids, image_token_id, [len(image.features) for image in images])
        ids = torch.tensor(input_ids, device=self.decoder.embed_tokens.weight.device)
        is_visual = ids == image_token_id
        embeds = self.decoder.embed_tokens(ids)
        if images:
            visual = torch.cat([self.projector(image.features) for image in images])
            embeds = embeds.masked_scatter(is_visual[:, None], visual.to(embeds))
        return embeds, visual_pools(is_visual.tolist())

    def _run_segments(
        self, hidden: Tensor, pools: Sequence[Span], settings: DuetSettings, cache: DynamicCache
    ) -> tuple[Tensor, list[list[int]], list[list[int]]]:
        """Last hidden states `[1, m, hidden]`, rows kept at each boundary, and each segment's prompt rows."""
        rows = list(range(hidden.shape[1]))
        guiding = resolve_guiding_rows(settings.guiding_rows, pools, len(rows))
        kept_per_stage, segment_rows = [], [rows]
        spans = self._segment_spans(settings.boundaries)
        hidden = self._run_layers(hidden, spans[0], cache)
        for span, keep in zip(spans[1:], settings.keep, strict=True):
            kept = list(range(len(rows)))
            if pools:
                # Text is never dropped, so every guiding row is still held.
                current = {row: idx for idx, row in enumerate(rows)}
                guiding_here = [current[row] for row in guiding]
                positions = self._position_embeddings(hidden, first=0)
                attention = guided_attention(self.decoder.layers[span[0]], hidden, positions, guiding_here)
                kept = kept_rows(attention, guiding, rows, pools, keep)
            rows = [rows[idx] for idx in kept]
            kept_per_stage.append(kept)
            segment_rows.append(rows)
            hidden = self._run_layers(hidden[:, kept], span, cache)
        return hidden, kept_per_stage, segment_rows

    def _decode(self, token: Tensor, cache: DynamicCache, boundaries: Sequence[int]) -> Tensor:
        """Append one token to every layer's cache. Returns the next token's logits `[vocab]`."""
        hidden = self.decoder.embed_tokens(token.view(1, 1))
        for span in self._segment_spans(boundaries):
            hidden = self._run_layers(hidden, span, cache)
        return self._logits(hidden)[-1]

    def _run_layers(self, hidden: Tensor, layer_span: Span, cache: DynamicCache) -> Tensor:
        """Run the layers `[start, end)` of one segment. Positions continue the segment's own sequence without gaps."""
        start, end = layer_span
        num_queries, num_cached = hidden.shape[1], cache.get_seq_length(start)
        positions = self._position_embeddings(hidden, first=num_cached)
        mask = hidden.new_full((num_queries, num_cached + num_queries), float("-inf")).triu(num_cached + 1)
        for layer in self.decoder.layers[start:end]:
            hidden = layer(
                hidden, attention_mask=mask[None, None], position_embeddings=positions, past_key_values=cache
            )
        return hidden

    def _position_embeddings(self, hidden: Tensor, first: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(first, first + hidden.shape[1], device=hidden.device)
        return self.decoder.rotary_emb(hidden, positions[None])

    def _segment_spans(self, boundaries: Sequence[int]) -> list[Span]:
        spans = list(pairwise([0, *boundaries, len(self.decoder.layers)]))
        if any(start >= end for start, end in spans):
            raise ValueError(f"boundaries {list(boundaries)} must ascend within (0, {len(self.decoder.layers)})")
        return spans

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(self.decoder.norm(hidden))[0]


def _expand_images(input_ids: list[int], image_token_id: int, num_entering: Sequence[int]) -> list[int]:
    """Repeat each image's token once per visual token, unless the prompt already does."""
    num_found = input_ids.count(image_token_id)
    if num_found == sum(num_entering):
        return input_ids
    if num_found != len(num_entering):
        raise ValueError(f"the prompt has {num_found} image tokens for {len(num_entering)} images")
    counts = iter(num_entering)
    expanded: list[int] = []
    for token_id in input_ids:
        expanded += [token_id] * (next(counts) if token_id == image_token_id else 1)
    return expanded
