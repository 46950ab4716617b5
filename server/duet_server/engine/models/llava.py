"""LLaVA-1.5: vLLM's own model plus both stages, with a CLIP tower and any Llama-family decoder."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import BatchFeature
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate

from duet_server.engine.stage_seconds import stage_clock
from duet_server.engine.text_stage import SegmentedDecoder
from duet_server.engine.vision_stage import cut, encode
from duet_server.engine.vllm_internals import VllmConfig
from duet_server.plan import check_llava, llava_shape
from duet_server.plan.wire import NO_STAGE1, STAGE1_KEY, TRACE_KEY, Stage1Counts, TracedPicture, decode_stage1
from duet_server.stage_metrics import STAGE1_SECONDS


class DuetLlavaProcessingInfo(LlavaProcessingInfo):
    """Tells vLLM the most tokens of one image, so that its encoder budget admits every image."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.get_max_image_tokens() + 1}  # stage 1 may keep CLS and every patch


class DuetLlavaProcessor(LlavaMultiModalProcessor):
    """Attaches stage 1's counts to every image, so that vLLM's caches keep different settings apart."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        kwargs = {key: value for key, value in hf_kwargs.items() if key not in (STAGE1_KEY, TRACE_KEY)}
        return super()._call_hf_processor(hf_data, kwargs)

    def _postprocess_hf_mm_data(
        self,
        mm_inputs: Mapping[str, object],
        hf_processor_mm_kwargs: Mapping[str, object],
        processed_data: BatchFeature,
    ) -> BatchFeature:
        data = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)
        if "pixel_values" in data:
            counts = decode_stage1(hf_processor_mm_kwargs, self.info.get_max_image_tokens())
            data[STAGE1_KEY] = torch.tensor([counts] * len(data["pixel_values"]))
            if TRACE_KEY in hf_processor_mm_kwargs:
                trace_id: Any = hf_processor_mm_kwargs[TRACE_KEY]
                images: Any = mm_inputs["images"]
                traced = [TracedPicture(trace_id, image_idx, *image.size) for image_idx, image in enumerate(images)]
                data[TRACE_KEY] = torch.tensor(traced)
        return data

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        per_image = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return {**fields, STAGE1_KEY: per_image, TRACE_KEY: per_image}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, Any],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        counts = decode_stage1(hf_processor_mm_kwargs, self.info.get_max_image_tokens())
        if counts == NO_STAGE1:
            return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        image_token_id = self.info.get_hf_config().image_token_index
        replacement = [image_token_id] * counts.num_entering
        return [PromptReplacement(modality="image", target=[image_token_id], replacement=replacement)]


@MULTIMODAL_REGISTRY.register_processor(
    DuetLlavaProcessor, info=DuetLlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class DuetLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """vLLM's LLaVA plus both stages. Without compression it computes the same as vLLM's."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        boundaries = vllm_config.additional_config["duet"]["boundaries"]
        num_patches = llava_shape(self.config, boundaries).vision.num_patches
        self.max_images = max(1, vllm_config.scheduler_config.max_num_batched_tokens // num_patches)
        self.clock = stage_clock(STAGE1_SECONDS, vllm_config)
        self.decoder = SegmentedDecoder(self.language_model.model, boundaries, vllm_config)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run both stages once, before the first request needs them."""
        if not self.multimodal_config.get_limit_per_prompt("image"):
            return  # vLLM has not loaded the tower
        config, weight = self.config.vision_config, self.language_model.model.norm.weight
        pixels = torch.zeros(1, 3, config.image_size, config.image_size, dtype=weight.dtype, device=weight.device)
        cut(*encode(self.vision_tower.vision_model, pixels, nullcontext()), [Stage1Counts(2, 1, 1)])
        self.decoder.warm_up(weight.device, weight.dtype)

    def get_model_state_cls(self) -> type:
        """The hooks for vLLM's V2 runner, imported here because the V1 runner does not need the module."""
        from duet_server.engine.model_state_v2 import DuetModelState

        return DuetModelState

    def embed_multimodal(self, **kwargs: Any) -> Any:
        counts, traced = _counts(kwargs.pop(STAGE1_KEY, None)), kwargs.pop(TRACE_KEY, None)
        if not any(counts):
            return super().embed_multimodal(**kwargs)
        pixels = self._parse_and_validate_image_input(**kwargs)["pixel_values"]
        # In batches: the tower's memory grows with the patches, and a prompt may have many pictures.
        tokens: list[torch.Tensor] = []
        for start in range(0, len(counts), self.max_images):
            batch = slice(start, start + self.max_images)
            encoded = encode(self.vision_tower.vision_model, pixels[batch], self.clock)
            with self.clock:
                tokens += cut(*encoded, counts[batch])
            if traced is not None:
                self.decoder.traces.add_images(traced[batch], counts[batch], *encoded[1:])
        self.clock.observe()
        return self.multi_modal_projector(torch.cat(tokens)).split([len(image) for image in tokens])

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        return self.decoder(positions, hidden)


def _counts(field: torch.Tensor | None) -> list[Stage1Counts | None]:
    """The counts of each image; None if stage 1 is off for it."""
    rows = [] if field is None else [Stage1Counts(*row) for row in field.tolist()]
    return [None if row == NO_STAGE1 else row for row in rows]


def check_config(vllm_config: VllmConfig) -> None:
    """Raise for LLaVA variants whose tower stage 1 cannot read."""
    check_llava(vllm_config.model_config.hf_config)
