"""DuetModel: vLLM's model of any family, with both stages of compression."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from duet_server.engine.backbones.backbone import Backbone
from duet_server.engine.cut import CutUnit, Encoded, cut
from duet_server.engine.item_fields import pop_field
from duet_server.engine.stage_seconds import stage_clock
from duet_server.engine.tap import Tap
from duet_server.engine.text_stage import segment_decoder
from duet_server.engine.vllm_internals import VllmConfig
from duet_server.plan import Unit
from duet_server.plan.wire import LENGTH_KEY, TRACE_KEY, UNITS_KEY
from duet_server.stage_metrics import STAGE1_SECONDS


class DuetModel:
    """Mixed in front of vLLM's model. Without compression it computes the same as vLLM's.

    Stage 1 taps the tower's last global attention, and cuts what the tower made. Stage 2 replaces the decoder's inner
    model by its segments.
    """

    backbone: Backbone

    def __init__(self: Any, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.backbone = self.backbone.variant(vllm_config.model_config.hf_config)
        self.max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self.clock = stage_clock(STAGE1_SECONDS, vllm_config)
        boundaries = vllm_config.additional_config["duet"]["boundaries"]
        self.decoder = segment_decoder(self.get_language_model().model, self.backbone.decoder, boundaries, vllm_config)
        self.taps: tuple[Tap, ...] = ()  # a tuple, so that the tower's attention keeps its one name
        self.first_inputs: dict[str, Any] = {}
        if vllm_config.additional_config["duet"]["served"]:  # without images, vLLM has not loaded the tower
            owner, name = self.backbone.tapped(self)
            self.taps = (Tap(getattr(owner, name)),)
            setattr(owner, name, self.taps[0])

    @torch.inference_mode()
    def warm_up(self: Any) -> None:
        """Run both stages once, before the first request needs them."""
        if self.first_inputs:  # of vLLM's profiling run
            self._compress(self.first_inputs, [[_smallest_cut(unit) for unit in self.first_units]])
            self.first_inputs = {}
        weight = self.get_language_model().model.norm.weight
        self.decoder.warm_up(weight.device, weight.dtype)

    def get_model_state_cls(self) -> type:
        """The hooks for vLLM's V2 runner, imported here because the V1 runner does not need the module."""
        from duet_server.engine.model_state_v2 import DuetModelState

        return DuetModelState

    def embed_multimodal(self: Any, **inputs: Any) -> Any:
        """vLLM's own; if stage 1 cuts any of the items, the rows that it keeps of each."""
        _, fields = pop_field(inputs, UNITS_KEY, self.backbone.modalities)
        _, traced = pop_field(inputs, TRACE_KEY, self.backbone.modalities)
        pop_field(inputs, LENGTH_KEY, self.backbone.modalities)
        items = [[Unit(*row) for row in field.tolist()] for field in ([] if fields is None else fields)]
        if not any(unit.is_cut for item in items for unit in item):
            if items and not self.first_inputs:
                self.first_units = items[0]
                self.first_inputs = self.backbone.select(inputs, items, 0, 1)
            return super().embed_multimodal(**inputs)  # type: ignore[misc]
        return self._compress(inputs, items, traced)

    def finish_items(
        self: Any, items: Sequence[Sequence[CutUnit]], units: Sequence[Sequence[Unit]]
    ) -> list[torch.Tensor]:
        """The rows of each item."""
        return self.backbone.finish(self, items)

    def _compress(
        self: Any, inputs: dict[str, Any], items: Sequence[Sequence[Unit]], traced: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        (tap,) = self.taps
        kept: list[list[CutUnit]] = []
        order = {"has_cls": self.backbone.has_cls, "in_place": self.backbone.in_place}
        for start, end in batches(items, self.max_tokens):
            units = [unit for item in items[start:end] for unit in item]
            batch = self.backbone.select(inputs, items, start, end)
            rows = tap.run(self.backbone.encode, self, super().embed_multimodal, batch)  # type: ignore[misc]
            with self.clock:
                encoded = Encoded(rows, *self.backbone.score(self, tap, batch, units))
                cut_units = iter(cut(encoded, units, **order))
            kept += [[next(cut_units) for _ in item] for item in items[start:end]]
            if traced is not None:
                self.decoder.traces.add_items(traced[start:end], items[start:end], encoded, **order)
        self.clock.observe()
        return tuple(self.finish_items(kept, items))


def batches(items: Sequence[Sequence[Unit]], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of items whose units have at most ``max_tokens`` together, or one item each.

    The tower's memory grows with what it encodes, not with what stage 1 keeps, and a prompt may have many pictures.
    """
    start, total = 0, 0
    for end, item in enumerate(items):
        num_tokens = sum(unit.num_tokens for unit in item)
        if end > start and total + num_tokens > max_tokens:
            yield start, end
            start, total = end, 0
        total += num_tokens
    if items:
        yield start, len(items)


def _smallest_cut(unit: Unit) -> Unit:
    return unit._replace(dominant=2, contextual=1, cluster_width=1) if unit.num_tokens > 2 else unit
