"""DuetModel: vLLM's model of any family, with both stages of compression."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from duet_server.engine.backbones.backbone import Backbone
from duet_server.engine.cut import CutUnit, Encoded, cut
from duet_server.engine.item_fields import pop_field
from duet_server.engine.stage_seconds import stage_clock
from duet_server.engine.tap import Tap
from duet_server.engine.text_stage import segment_decoder
from duet_server.engine.vllm_internals import VllmConfig
from duet_server.plan import Unit, any_cut
from duet_server.plan.wire import LENGTH_KEY, ROWS_KEY, TRACE_KEY, UNITS_KEY
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
        self.sample: tuple[dict[str, Any], list[Unit]] | None = None  # an item of vLLM's profiling run, to warm up
        self.is_warm = False
        if vllm_config.additional_config["duet"]["served"]:  # without images, vLLM has not loaded the tower
            owner, name = self.backbone.tapped(self)
            self.taps = (Tap(getattr(owner, name)),)
            setattr(owner, name, self.taps[0])

    @torch.inference_mode()
    def warm_up(self: Any) -> None:
        """Run both stages once, before the first request needs them."""
        if self.sample is not None:
            inputs, units = self.sample
            self._cut_items(inputs, [[_smallest_cut(unit) for unit in units]])
        self.sample, self.is_warm = None, True
        weight = self.get_language_model().model.norm.weight
        self.decoder.warm_up(weight.device, weight.dtype)

    def get_model_state_cls(self) -> type:
        """The hooks for vLLM's V2 runner, imported here because the V1 runner does not need the module."""
        from duet_server.engine.model_state_v2 import DuetModelState

        return DuetModelState

    def embed_multimodal(self: Any, **inputs: Any) -> Any:
        """The rows of each item: vLLM's own, or those that stage 1 keeps."""
        fields = pop_field(inputs, UNITS_KEY, self.backbone.modalities)
        traced = pop_field(inputs, TRACE_KEY, self.backbone.modalities)
        for key in (LENGTH_KEY, ROWS_KEY):
            pop_field(inputs, key, self.backbone.modalities)
        items = [[Unit(*row) for row in field.tolist()] for field in ([] if fields is None else fields)]
        if items and not self.is_warm:
            self.sample = self.backbone.select(inputs, items, 0, 1), items[0]
        if not any(map(any_cut, items)):
            return super().embed_multimodal(**inputs)  # type: ignore[misc]
        rows: list[torch.Tensor] = []
        for is_cut, run in groupby(range(len(items)), lambda idx: any_cut(items[idx])):
            start, *more = run
            end = start + 1 + len(more)
            chosen = self.backbone.select(inputs, items, start, end)
            if is_cut:
                rows += self._cut_items(chosen, items[start:end], None if traced is None else traced[start:end])
            else:
                rows += super().embed_multimodal(**chosen)  # type: ignore[misc]
        return tuple(rows)

    def finish_items(
        self: Any, inputs: dict[str, Any], items: Sequence[Sequence[CutUnit]], units: Sequence[Sequence[Unit]]
    ) -> list[torch.Tensor]:
        """The rows of each item, from the kept rows of its units."""
        return self.backbone.finish(self, inputs, items, units)

    def _cut_items(
        self: Any, inputs: dict[str, Any], items: Sequence[Sequence[Unit]], traced: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
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
                columns = self.backbone.tile_columns(self, batch)
                self.decoder.traces.add_items(traced[start:end], items[start:end], encoded, columns, **order)
        self.clock.observe()
        return self.finish_items(inputs, kept, items)


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
