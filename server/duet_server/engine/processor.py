"""DuetProcessor: vLLM's processor of any model, which also counts what stage 1 keeps of every image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate
from vllm.multimodal.processing.processor import PromptUpdateDetails

from duet_server.engine.item_fields import without
from duet_server.plan import Unit, any_cut, cut_units
from duet_server.plan.wire import (
    LENGTH_KEY,
    ROWS_KEY,
    RULE_KEY,
    TRACE_KEY,
    UNITS_KEY,
    TracedPicture,
    decode_rule,
    field_key,
    units_of,
)

FIELDS = (UNITS_KEY, LENGTH_KEY, TRACE_KEY, ROWS_KEY)


class DuetProcessor:
    """Mixed in front of vLLM's processor.

    Every item gets its units with their counts as a field. They reach the model with the item's pixels, and vLLM's
    caches keep different settings apart. Placeholders shrink to what stage 1 keeps.
    """

    backbone: Any

    def _apply_hf_processor_main(
        self: Any, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, Any]
    ) -> BatchFeature:
        rule, trace_id = decode_rule(hf_kwargs), hf_kwargs.get(TRACE_KEY)
        plain = without(hf_kwargs, RULE_KEY, TRACE_KEY)
        data = super()._apply_hf_processor_main(mm_items, plain)  # type: ignore[misc]
        config = self.info.get_hf_config()
        backbone = self.backbone.variant(config)
        fields = super()._get_mm_fields_config(data, plain)  # type: ignore[misc]
        kwargs_items = MultiModalKwargsItems.from_hf_inputs(data, fields)
        updates = super()._get_prompt_updates(mm_items, plain, kwargs_items)  # type: ignore[misc]
        for modality, items in kwargs_items.items():
            if modality not in backbone.modalities or any("embeds" in key for item in items for key in item):
                continue
            (update,) = (update for update in updates if update.modality == modality)
            lengths = [sum(_visual_mask(update.resolve(idx).content)) for idx in range(len(items))]
            units = [
                cut_units(rule, backbone.grids(config, modality, item), has_cls=backbone.has_cls, num_tokens=length)
                for item, length in zip(items, lengths, strict=True)
            ]
            data[field_key(UNITS_KEY, modality)] = [torch.tensor(item_units) for item_units in units]
            data[field_key(LENGTH_KEY, modality)] = torch.tensor(lengths)
            if trace_id is not None and modality == "image":
                pictures = mm_items.get_items("image", ImageProcessorItems)
                traced = [TracedPicture(trace_id, idx, *pictures.get_image_size(idx)) for idx in range(len(items))]
                data[field_key(TRACE_KEY, modality)] = torch.tensor(traced)
                if None not in (rows := [backbone.whole_rows(config, item) for item in items]):
                    data[field_key(ROWS_KEY, modality)] = list(map(torch.tensor, rows))
        return data

    def _get_mm_fields_config(
        self: Any, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        plain = without(hf_processor_mm_kwargs, RULE_KEY, TRACE_KEY)
        fields = super()._get_mm_fields_config(hf_inputs, plain)  # type: ignore[misc]
        own = {
            field_key(key, modality): MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for key in FIELDS
            for modality in self.backbone.modalities
        }
        return {**fields, **own}

    def _get_prompt_updates(
        self: Any,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, Any],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        plain = without(hf_processor_mm_kwargs, RULE_KEY, TRACE_KEY)
        updates = super()._get_prompt_updates(mm_items, plain, out_mm_kwargs)  # type: ignore[misc]
        return [self._shrunk(update, out_mm_kwargs) for update in updates]

    def _shrunk(self: Any, update: PromptUpdate, out_mm_kwargs: MultiModalKwargsItems) -> PromptUpdate:
        """The update with placeholders for the tokens that stage 1 keeps; vLLM's own where it cuts nothing."""
        assert isinstance(update, PromptReplacement), f"{type(update)=}"

        def replacement(item_idx: int) -> PromptUpdateDetails:
            details = update.resolve(item_idx).content
            units = units_of(out_mm_kwargs[update.modality][item_idx], update.modality)
            return shrink(details, units) if any_cut(units) else details

        return replace(update, replacement=replacement)


def shrink(details: PromptUpdateDetails, units: Sequence[Unit]) -> PromptUpdateDetails:
    """vLLM's placeholder with each unit's visual tokens replaced by those that enter.

    Tokens between units stay. Tokens inside a unit, such as a row's break, go, if stage 1 cuts the unit. If the
    placeholder does not have the units' tokens one after another, all of its visual tokens are replaced at once.
    """
    full, mask = list(details.full), _visual_mask(details)
    places = [place for place, is_visual in enumerate(mask) if is_visual]
    if sum(unit.num_tokens for unit in units) == len(places):
        edges = [0, *accumulate(unit.num_tokens for unit in units)]
        runs = [(*ends, unit.num_entering, unit.is_cut) for ends, unit in zip(pairwise(edges), units, strict=True)]
    else:
        runs = [(0, len(places), sum(unit.num_entering for unit in units), True)]
    tokens, is_visual, done = list[int](), list[bool](), 0
    for first, last, num_entering, is_cut in runs:
        start, end = places[first], places[last - 1] + 1
        tokens += full[done:start] + ([full[start]] * num_entering if is_cut else full[start:end])
        is_visual += mask[done:start] + ([True] * num_entering if is_cut else mask[start:end])
        done = end
    tokens, kept = tokens + full[done:], torch.tensor(is_visual + mask[done:])
    return PromptUpdateDetails(tokens, is_embed=lambda _tokens: kept)


def _visual_mask(details: PromptUpdateDetails) -> list[bool]:
    """Which of a placeholder's tokens are visual."""
    if details.is_embed is None:
        return [True] * len(details.full)
    mask: list[bool] = details.is_embed(list(details.full)).tolist()
    return mask


class DuetProcessingInfo:
    """Mixed in front of vLLM's processing info, so that the encoder's budget admits images with their class tokens."""

    backbone: Any

    def get_mm_max_tokens_per_item(self: Any, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        most = self.backbone.variant(self.get_hf_config()).max_tokens_per_item(self)
        return most or super().get_mm_max_tokens_per_item(seq_len, mm_counts)  # type: ignore[misc]
