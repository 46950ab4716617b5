"""DuetLlava: the Hugging Face LLaVA with both DUET stages in its training forward pass, batched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel, LlamaModel, LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.utils import ModelOutput

from duet_server.plan import CompressionSettings, check_boundaries, check_llava, default_boundaries, num_tower_layers
from duet_training.batch_plan import BatchBoundary, plan_boundaries
from duet_training.conversations import IGNORED
from duet_training.text_stage import DuetDecoderLayer, first_positions
from duet_training.vision_stage import compress, encode

NO_ROW = -1


@dataclass
class DuetOutput(ModelOutput):
    """The output for B samples: T rows enter the decoder, and T' of them are left in its last segment."""

    loss: Tensor | None = None
    """Mean cross entropy of the labels; None without labels."""
    logits: Tensor | None = None
    """``[B, T', vocab]``."""
    held_rows: tuple[Tensor, ...] | None = None
    """Per segment ``[B, rows]``: the entering rows that it holds, in order. ``NO_ROW`` is padding."""
    patches_by_score: Tensor | None = None
    """``[images, N]``, highest score first. Stage 1 keeps the first ``dominant - 1``. None if stage 1 is off."""


class DuetLlava(LlavaForConditionalGeneration):
    """Has the weights, configuration and checkpoint format of the published LLaVA, so that servers load what it saves.

    Args:
        config: a LLaVA with a CLIP tower and a Llama decoder.

    Raises:
        ValueError: if the tower, the decoder or the feature selection is another one.
    """

    _no_split_modules = ("DuetDecoderLayer", "CLIPEncoderLayer")

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        tower, decoder = self.model.vision_tower, self.model.language_model
        if not isinstance(tower, CLIPVisionModel) or not isinstance(decoder, LlamaModel):
            raise ValueError(f"got {type(tower)} and {type(decoder)}, expected a CLIP tower and a Llama decoder")
        check_llava(config)
        for layer in decoder.layers:
            layer.__class__ = DuetDecoderLayer  # same weights; forward takes one more argument
        self.boundaries = default_boundaries(len(decoder.layers))
        self.loss_type = "ForCausalLM"  # otherwise, transformers derives it from the class name

    @property
    def num_tower_layers(self) -> int:
        """The number of tower layers that run, up to the feature layer."""
        return num_tower_layers(self.config)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Decoder layers before which visual tokens may be dropped; settings have one ``keep`` value for each."""
        return self._boundaries

    @boundaries.setter
    def boundaries(self, layer_idxs: tuple[int, ...]) -> None:
        self._boundaries = check_boundaries(layer_idxs, len(self.model.language_model.layers))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        guiding: Tensor | None = None,
        compression: CompressionSettings | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run both stages with ``compression``; without it, run the unchanged LLaVA, with KV caches and generation.

        Args:
            input_ids: ``[B, T]``, padded on the right, with one image token for every entering visual token.
            pixel_values: ``[images, 3, H, W]``, in prompt order; None without images.
            attention_mask: ``[B, T]``, 0 on padding; by default, there is no padding.
            labels: ``[B, T]``, ``IGNORED`` at rows that are not learned.
            guiding: ``[B, T]`` bool, the prompt rows that rank visual tokens. By default, these are all text rows
                outside of answers, that is, with the label ``IGNORED``.
            compression: one setting for the whole batch.
            kwargs: ``num_items_in_batch``, with which Trainer averages the loss over several batches.

        Raises:
            ValueError: if image tokens, pixels, settings and guiding rows do not match.
        """
        if compression is None:
            kwargs |= {"pixel_values": pixel_values, "attention_mask": attention_mask, "labels": labels}
            return super().forward(input_ids=input_ids, **kwargs)
        assert input_ids is not None, "compressed training needs input_ids"
        is_real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        is_prompt = is_real.bool() if labels is None else is_real.bool() & (labels == IGNORED)
        is_visual = (input_ids == self.config.image_token_id) & is_prompt  # an answer may contain it as well
        if guiding is None:
            guiding = ~is_visual & is_prompt
        hidden, patches_by_score = self._embed(input_ids, is_visual, pixel_values, compression)
        hidden, held_rows = self._run_segments(hidden, is_visual, guiding, is_real, compression)
        logits = self.lm_head(hidden)
        loss = None if labels is None else self._loss(logits, _labels_of(labels, held_rows[-1]), **kwargs)
        return DuetOutput(loss, logits, tuple(held_rows), patches_by_score)

    def _embed(
        self, input_ids: Tensor, is_visual: Tensor, pixel_values: Tensor | None, compression: CompressionSettings
    ) -> tuple[Tensor, Tensor | None]:
        """The decoder's input ``[B, T, dim]``, and stage 1's ranking of the patches."""
        embeds, config = self.get_input_embeddings()(input_ids), self.config
        pixels, num_images = pixel_values, 0 if pixel_values is None else len(pixel_values)
        if pixels is None:  # encode a blank image: all processes of a distributed run must call the same modules
            size = config.vision_config.image_size
            pixels = torch.zeros(1, 3, size, size, device=embeds.device)
        tower = self.model.vision_tower
        learns = pixels.requires_grad or any(weight.requires_grad for weight in tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):  # or checkpointing would record it for nothing
            images = encode(tower, pixels.to(tower.dtype), self.num_tower_layers)
            tokens, patches_by_score = compress(images, compression)
        visual = self.model.multi_modal_projector(tokens).to(embeds.dtype)
        num_entering, num_expected = len(tokens) if num_images else 0, int(is_visual.sum())
        if num_entering != num_expected:
            raise ValueError(
                f"input_ids has {num_expected} image tokens, but {num_images} images enter as {num_entering} "
                "visual tokens under these settings"
            )
        if num_images == 0:
            return embeds + 0 * visual.sum(), None
        return embeds.masked_scatter(is_visual[..., None], visual), patches_by_score

    def _run_segments(
        self, hidden: Tensor, is_visual: Tensor, guiding: Tensor, is_real: Tensor, compression: CompressionSettings
    ) -> tuple[Tensor, list[Tensor]]:
        """Last hidden states ``[B, T', dim]`` and each segment's held rows.

        All padding comes after the real rows, so causal attention already hides it: no segment needs a mask.
        """
        self._check(compression)
        decoder, lengths = self.model.language_model, is_real.sum(dim=1)
        visual_rows, guiding_rows, num_rows = (tensor.cpu().numpy() for tensor in (is_visual, guiding, lengths))
        planned = plan_boundaries(visual_rows, guiding_rows, num_rows, compression.keep, hidden.device)
        boundaries = [None, *planned]
        places = torch.arange(hidden.shape[1], device=hidden.device)
        rotary = decoder.rotary_emb(hidden, places[None])
        held = [places.expand(len(hidden), -1).masked_fill(places >= lengths[:, None], NO_ROW)]
        edges = pairwise((0, *self.boundaries, len(decoder.layers)))
        for (start, end), boundary in zip(edges, boundaries, strict=True):
            for layer_idx in range(start, end):
                rotary, layer = first_positions(rotary, hidden.shape[1]), decoder.layers[layer_idx]
                if boundary is None or layer_idx > start:
                    hidden = layer(hidden, position_embeddings=rotary)
                else:
                    hidden, rows = layer(hidden, position_embeddings=rotary, boundary=boundary)
                    held.append(_held_behind(boundary, held[-1], rows))
            if boundary is None and start > 0:
                held.append(held[-1])
        return decoder.norm(hidden), held

    def _loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean cross entropy over the labels that are not ``IGNORED``; 0 if there are none."""
        num_learnt = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        num_learnt = torch.as_tensor(num_learnt, device=logits.device).clamp(min=1)
        vocab_size = self.config.text_config.vocab_size
        return self.loss_function(logits, labels, vocab_size=vocab_size, num_items_in_batch=num_learnt)

    def _check(self, compression: CompressionSettings) -> None:
        if len(compression.keep) != len(self.boundaries):
            raise ValueError(f"keep is {list(compression.keep)}, expected one per boundary of {self.boundaries}")
        if self.config.text_config._attn_implementation == "eager":
            raise ValueError("attn_implementation is 'eager', expected sdpa or flash attention, which need no mask")

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers, but the checkpoint names LLaVA as its architecture, which every server knows."""
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        if path.exists():
            config = {**json.loads(path.read_text()), "architectures": [LlavaForConditionalGeneration.__name__]}
            path.write_text(json.dumps(config, indent=2) + "\n")


# Weights have the published names in checkpoints and other names in memory; transformers finds the mapping by class.
register_checkpoint_conversion_mapping(DuetLlava.__name__, get_checkpoint_conversion_mapping("llava"), overwrite=True)


def _held_behind(boundary: BatchBoundary, held_rows: Tensor, rows: Tensor) -> Tensor:
    return held_rows.flatten()[rows].view(len(held_rows), -1).masked_fill(boundary.is_padding, NO_ROW)


def _labels_of(labels: Tensor, held_rows: Tensor) -> Tensor:
    """``labels [B, T]`` at the held rows, ``[B, T']``."""
    return labels.gather(1, held_rows.clamp(min=0)).masked_fill(held_rows == NO_ROW, IGNORED)
