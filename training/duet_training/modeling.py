"""DuetLlava: the Hugging Face LLaVA with both of DUET's stages in its training forward, batched."""

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
    """Of B samples, T rows of which entered the decoder and T' are left in its last segment."""

    loss: Tensor | None = None
    """Mean cross entropy of the labels, None without any."""
    logits: Tensor | None = None
    """``[B, T', vocab]``."""
    held_rows: tuple[Tensor, ...] | None = None
    """Per segment ``[B, rows]``, which of the rows that entered it holds, in order; ``NO_ROW`` is padding."""
    patches_by_score: Tensor | None = None
    """``[images, N]``, highest first, the ``dominant - 1`` first of which stage 1 kept; None where it is off."""


class DuetLlava(LlavaForConditionalGeneration):
    """Weights, configuration and checkpoints of the published LLaVA, so that a server loads what it saves.

    Args:
        config: a LLaVA with a CLIP tower and a Llama decoder.

    Raises:
        ValueError: for another tower, decoder or feature selection.
    """

    _no_split_modules = ("DuetDecoderLayer", "CLIPEncoderLayer")

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        tower, decoder = self.model.vision_tower, self.model.language_model
        if not isinstance(tower, CLIPVisionModel) or not isinstance(decoder, LlamaModel):
            raise ValueError(f"needs a CLIP tower and a Llama decoder, got {type(tower)} and {type(decoder)}")
        check_llava(config)
        for layer in decoder.layers:
            layer.__class__ = DuetDecoderLayer  # the same weights, one more argument
        self.boundaries = default_boundaries(len(decoder.layers))
        self.loss_type = "ForCausalLM"  # which transformers would look for in the class's name

    @property
    def num_tower_layers(self) -> int:
        """Layers of the tower that are run, up to the feature layer."""
        return num_tower_layers(self.config)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Decoder layers before which visual tokens may drop; settings have one keep for each."""
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
        """With ``compression``, both stages; without, the LLaVA as it is, with caches and generation.

        Args:
            input_ids: ``[B, T]``, every image's token repeated for each visual token that enters, padded on the right.
            pixel_values: ``[images, 3, H, W]``, in the prompts' order; None without images.
            attention_mask: ``[B, T]``, 0 on the padding; by default there is none.
            labels: ``[B, T]``, ``IGNORED`` where nothing is to be learnt.
            guiding: ``[B, T]`` bool, the prompt rows that rank visual tokens; by default all text that is no answer,
                that is, whose label is ``IGNORED``.
            compression: one setting for the batch.
            kwargs: ``num_items_in_batch``, by which the Trainer means losses over several batches.

        Raises:
            ValueError: where image tokens, pixels, settings and guiding rows do not fit each other.
        """
        if compression is None:
            kwargs |= {"pixel_values": pixel_values, "attention_mask": attention_mask, "labels": labels}
            return super().forward(input_ids=input_ids, **kwargs)
        assert input_ids is not None, "compressed training starts from tokens"
        is_real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        is_prompt = is_real.bool() if labels is None else is_real.bool() & (labels == IGNORED)
        is_visual = (input_ids == self.config.image_token_id) & is_prompt  # noise may answer with that token, too
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
        """What enters the decoder, ``[B, T, dim]``, and stage 1's ranking."""
        embeds, config = self.get_input_embeddings()(input_ids), self.config
        pixels, num_images = pixel_values, 0 if pixel_values is None else len(pixel_values)
        if pixels is None:  # the processes of a distributed run must call the same modules, so a blank is looked at
            size = config.vision_config.image_size
            pixels = torch.zeros(1, 3, size, size, device=embeds.device)
        tower = self.model.vision_tower
        learns = pixels.requires_grad or any(weight.requires_grad for weight in tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):  # else checkpointing would record it in vain
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

        Padding lies behind every real row, so causal attention alone keeps it out: no segment needs a mask.
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
        """Mean cross entropy over all that is to be learnt; 0 where that is nothing."""
        num_learnt = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        num_learnt = torch.as_tensor(num_learnt, device=logits.device).clamp(min=1)
        vocab_size = self.config.text_config.vocab_size
        return self.loss_function(logits, labels, vocab_size=vocab_size, num_items_in_batch=num_learnt)

    def _check(self, compression: CompressionSettings) -> None:
        if len(compression.keep) != len(self.boundaries):
            raise ValueError(f"keep is {list(compression.keep)}, expected one for each boundary of {self.boundaries}")
        if self.config.text_config._attn_implementation == "eager":
            raise ValueError("attn_implementation is 'eager', which needs a mask; sdpa and flash attention need none")

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As in transformers; the checkpoint calls itself a LLaVA, which every server knows."""
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        if path.exists():
            config = {**json.loads(path.read_text()), "architectures": [LlavaForConditionalGeneration.__name__]}
            path.write_text(json.dumps(config, indent=2) + "\n")


# Weights have the published names in checkpoints and transformers' own in memory; it looks the way up by class.
register_checkpoint_conversion_mapping(DuetLlava.__name__, get_checkpoint_conversion_mapping("llava"), overwrite=True)


def _held_behind(boundary: BatchBoundary, held_rows: Tensor, rows: Tensor) -> Tensor:
    return held_rows.flatten()[rows].view(len(held_rows), -1).masked_fill(boundary.is_padding, NO_ROW)


def _labels_of(labels: Tensor, held_rows: Tensor) -> Tensor:
    """``labels [B, T]`` at the rows that are left, ``[B, T']``."""
    return labels.gather(1, held_rows.clamp(min=0)).masked_fill(held_rows == NO_ROW, IGNORED)
