"""The keys that carry a request's settings from the API's process to the engine's, with their encoders and decoders.

vLLM passes two mappings of a request through unchanged. The image processor reads ``mm_processor_kwargs``. The
scheduler and every worker read ``extra_args`` of the sampling parameters. The API refuses requests in which a client
sets these keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from duet_server.plan.budget import entering_total
from duet_server.plan.errors import SettingsError
from duet_server.plan.layout import (
    GUIDE_CHOICES,
    PromptLayout,
    VisualRows,
    check_ends_on_text,
    guiding_rows,
    make_layout,
)
from duet_server.plan.segments import RequestPlan, lay_out
from duet_server.plan.settings import CompressionSettings
from duet_server.plan.shape import ModelShape
from duet_server.plan.units import TOTAL, Stage1Rule, Unit

RULE_KEY = "duet_stage1"  # in mm_processor_kwargs: Stage1Rule
UNITS_KEY = "duet_units"  # a field of every image: [units, 5], each row a Unit
LENGTH_KEY = "duet_length"  # a field of every image: the visual tokens that the language model gets without stage 1
HELD_KEY = "duet_held"  # in extra_args: for each segment, the rows that it holds of each pool
GUIDE_KEY = "duet_guide"  # in extra_args: one of GUIDE_CHOICES
SALIENT_KEY = "duet_salient"  # in extra_args, for the guide "salient": the prompt rows of salient words
ROWS_KEY = "duet_rows"  # a field of an image of a trace: Backbone.whole_rows
TRACE_KEY = "duet_trace"  # in both, then a field of every image, TracedPicture: the id of the trace
MAX_TRACE_ID = (1 << 63) - 1


class TracedPicture(NamedTuple):
    """The ``TRACE_KEY`` field of a picture: trace id, the picture's number in the prompt, its size in pixels."""

    trace_id: int
    image_idx: int
    width: int
    height: int


def field_key(key: str, modality: str) -> str:
    """The name of a field of every item of a modality. vLLM lets a field belong to one modality only."""
    return f"{key}_{modality}"


def units_of(item: Any, modality: str) -> list[Unit]:
    """The units of one item, from vLLM's ``MultiModalKwargsItem``; empty if it has no pixels to encode."""
    key = field_key(UNITS_KEY, modality)
    return [] if item is None or key not in item else [Unit(*row) for row in item[key].data.tolist()]


def encode_processor_kwargs(
    settings: CompressionSettings | None, shape: ModelShape | None, trace_id: int = 0
) -> dict[str, Any]:
    """The keys to add to ``mm_processor_kwargs``: stage 1's rule unless it is off, the trace id unless it is 0."""
    kwargs: dict[str, Any] = {TRACE_KEY: trace_id} if trace_id else {}
    rule = None if settings is None or shape is None else stage1_rule(settings, shape)
    return kwargs | ({RULE_KEY: list(rule)} if rule else {})


def stage1_rule(settings: CompressionSettings, shape: ModelShape) -> Stage1Rule | None:
    """Stage 1's rule; None if it is off."""
    width = settings.cluster_width or 0
    if settings.budget is not None:
        total = entering_total(settings.budget, shape)
        return Stage1Rule(total, TOTAL, width) if math.isfinite(total) else None
    return None if settings.dominant is None else Stage1Rule(settings.dominant, settings.contextual, width)


def decode_rule(processor_kwargs: Mapping[str, Any]) -> Stage1Rule | None:
    """Stage 1's rule; None if the key is absent.

    Raises:
        SettingsError: if the rule would fail in the engine.
    """
    if RULE_KEY not in processor_kwargs:
        return None
    numbers = processor_kwargs[RULE_KEY]
    is_list = isinstance(numbers, list | tuple) and len(numbers) == 3
    if not is_list or not all(type(number) in (int, float) for number in numbers) or not _is_rule(*numbers):
        expected = "[dominant, contextual, cluster_width], counts from 1 on or shares below 1"
        raise SettingsError(RULE_KEY, numbers, expected)
    return Stage1Rule(*numbers)


def _is_rule(dominant: float, contextual: float, cluster_width: float) -> bool:
    counts = [number for number in (dominant, contextual) if number == TOTAL or number >= 1]
    are_counts = all(type(count) is int for count in [*counts, cluster_width])
    return are_counts and dominant > 0 and (contextual >= 0 or contextual == TOTAL) and cluster_width >= 0


def encode_extra_args(plan: RequestPlan, guide: str, salient: Sequence[int] = (), trace_id: int = 0) -> dict[str, Any]:
    """The keys to add to ``extra_args`` of a request whose tokens stage 2 drops.

    Args:
        plan: the request's plan; its guiding rows are not read.
        guide: one of ``GUIDE_CHOICES``.
        salient: the prompt rows of salient words; used only with the guide ``salient``.
        trace_id: the id of the request's trace; 0 for no trace.
    """
    held = [len(pool) for segment in plan.segments for pool in segment.pools]  # flat: vLLM takes lists of numbers
    args: dict[str, Any] = {HELD_KEY: held, GUIDE_KEY: guide}
    if guide == "salient":
        args[SALIENT_KEY] = list(salient)
    return args | ({TRACE_KEY: trace_id} if trace_id else {})


def decode_plan(
    extra_args: Mapping[str, Any],
    num_prompt_tokens: int,
    visual: VisualRows,
    num_boundaries: int,
) -> RequestPlan | None:
    """A request's plan; None if it drops nothing.

    A pure function: the scheduler and every worker get the same arguments from vLLM, and so build the same plan.

    Raises:
        SettingsError: if counts or guiding rows do not fit the model or the prompt.
    """
    held = extra_args.get(HELD_KEY)
    if held is None or not visual.spans:
        return None
    layout = make_layout(num_prompt_tokens, *visual)
    guiding = _decode_guiding_rows(extra_args, layout)
    try:
        plan = lay_out(layout, _by_segment(held, len(layout.pools), num_boundaries + 1), guiding)
    except ValueError as error:
        raise SettingsError(HELD_KEY, held, f"the rows of each pool in each segment ({error})") from error
    if not plan.drops:
        return None
    check_ends_on_text(layout)
    return replace(plan, trace_id=extra_args.get(TRACE_KEY, 0))


def _by_segment(held: Any, num_pools: int, num_segments: int) -> list[list[int]]:
    is_list = isinstance(held, list | tuple) and set(map(type, held)) == {int}
    if not is_list or len(held) != num_pools * num_segments:
        raise ValueError(f"expected {num_segments} segments of {num_pools} whole numbers")
    return [list(held[start : start + num_pools]) for start in range(0, len(held), num_pools)]


def _decode_guiding_rows(extra_args: Mapping[str, Any], layout: PromptLayout) -> tuple[int, ...]:
    guide, salient = extra_args.get(GUIDE_KEY, "all"), extra_args.get(SALIENT_KEY, [])
    if guide not in GUIDE_CHOICES:
        raise SettingsError(GUIDE_KEY, guide, f"one of {', '.join(GUIDE_CHOICES)}")
    if not isinstance(salient, list | tuple) or set(map(type, salient)) - {int}:
        raise SettingsError(SALIENT_KEY, salient, "a list of prompt rows")
    try:
        return guiding_rows(layout, guide, salient)
    except ValueError as error:
        raise SettingsError(SALIENT_KEY, salient, f"text rows of the prompt ({error})") from error
