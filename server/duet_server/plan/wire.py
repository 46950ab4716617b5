"""What crosses from the API's process to the engine's: every key, with its encoder beside its decoder.

vLLM passes two mappings of a request on as they are. The image processor reads ``mm_processor_kwargs``; the scheduler
and every worker read the sampling parameters' ``extra_args``. Clients cannot set these keys: the API refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from duet_server.plan.errors import SettingsError
from duet_server.plan.layout import GUIDE_CHOICES, PromptLayout, check_ends_on_text, guiding_rows, make_layout
from duet_server.plan.segments import RequestPlan, is_schedule, make_plan
from duet_server.plan.settings import CompressionSettings

STAGE1_KEY = "duet_stage1"  # in mm_processor_kwargs, then a field of every picture: Stage1Counts
KEEP_KEY = "duet_keep"  # in extra_args: one share for each boundary
GUIDE_KEY = "duet_guide"  # in extra_args: one of GUIDE_CHOICES
SALIENT_KEY = "duet_salient"  # in extra_args: the prompt rows of salient words, for the guide "salient"
TRACE_KEY = "duet_trace"  # in both, and a field of every picture: the id that the engine notes its choices under
MAX_TRACE_ID = (1 << 63) - 1


class Stage1Counts(NamedTuple):
    """Stage 1's counts for one picture; a ``cluster_width`` of 0 sets no limit."""

    dominant: int
    contextual: int
    cluster_width: int

    @property
    def num_entering(self) -> int:
        """Visual tokens that enter the language model."""
        return self.dominant + self.contextual


NO_STAGE1 = Stage1Counts(0, 0, 0)


class TracedPicture(NamedTuple):
    """The ``TRACE_KEY`` field of a picture: who asks, its number in the prompt, its size in pixels."""

    trace_id: int
    image_idx: int
    width: int
    height: int


def encode_processor_kwargs(settings: CompressionSettings | None, trace_id: int = 0) -> dict[str, Any]:
    """What to add to ``mm_processor_kwargs``: stage 1's counts, unless it is off; the trace id, unless it is 0."""
    kwargs: dict[str, Any] = {TRACE_KEY: trace_id} if trace_id else {}
    if settings is not None and settings.dominant is not None:
        kwargs[STAGE1_KEY] = [settings.dominant, settings.contextual, settings.cluster_width or 0]
    return kwargs


def decode_stage1(processor_kwargs: Mapping[str, Any], num_patches: int) -> Stage1Counts:
    """Stage 1's counts for a request's pictures, each of ``num_patches``; ``NO_STAGE1`` where the key is absent.

    Raises:
        SettingsError: for counts that would fail in the engine.
    """
    if STAGE1_KEY not in processor_kwargs:
        return NO_STAGE1
    counts = processor_kwargs[STAGE1_KEY]
    is_valid = isinstance(counts, list | tuple) and len(counts) == 3 and all(type(count) is int for count in counts)
    if not is_valid or counts[0] < 1 or min(counts) < 0 or counts[0] - 1 + counts[1] > num_patches:
        expected = f"[dominant, contextual, cluster_width] with dominant - 1 + contextual at most {num_patches}"
        raise SettingsError(STAGE1_KEY, counts, expected)
    return Stage1Counts(*counts)


def encode_extra_args(settings: CompressionSettings, salient: Sequence[int] = (), trace_id: int = 0) -> dict[str, Any]:
    """What to add to ``extra_args`` of a request from which stage 2 drops tokens.

    Args:
        settings: the request's settings.
        salient: the prompt rows of salient words; read only under the guide ``salient``.
        trace_id: what the engine shall note its choices under; 0 for no notes.
    """
    args: dict[str, Any] = {KEEP_KEY: list(settings.keep), GUIDE_KEY: settings.guide}
    if settings.guide == "salient":
        args[SALIENT_KEY] = list(salient)
    return args | ({TRACE_KEY: trace_id} if trace_id else {})


def decode_plan(
    extra_args: Mapping[str, Any],
    num_prompt_tokens: int,
    visual_spans: Sequence[tuple[int, int]],
    num_boundaries: int,
) -> RequestPlan | None:
    """A request's plan; None if it drops nothing.

    Pure: the scheduler and every worker rebuild the same plan from what vLLM hands each of them.

    Raises:
        SettingsError: for keeps or guiding rows that do not fit the model or the prompt.
    """
    keep = extra_args.get(KEEP_KEY)
    if keep is None or not visual_spans:
        return None
    layout = make_layout(num_prompt_tokens, visual_spans)
    if not is_schedule(keep, num_boundaries):
        raise SettingsError(KEEP_KEY, keep, f"{num_boundaries} numbers from 1 to 0 that never rise, one per boundary")
    guiding = _decode_guiding_rows(extra_args, layout)
    plan = replace(make_plan(layout, keep, guiding), trace_id=extra_args.get(TRACE_KEY, 0))
    if not plan.drops:
        return None
    check_ends_on_text(layout)
    return plan


def _decode_guiding_rows(extra_args: Mapping[str, Any], layout: PromptLayout) -> tuple[int, ...]:
    guide, salient = extra_args.get(GUIDE_KEY, "all"), extra_args.get(SALIENT_KEY, [])
    if guide not in GUIDE_CHOICES:
        raise SettingsError(GUIDE_KEY, guide, f"one of {', '.join(GUIDE_CHOICES)}")
    if not isinstance(salient, list | tuple) or not all(type(row) is int for row in salient):
        raise SettingsError(SALIENT_KEY, salient, "a list of prompt rows")
    try:
        return guiding_rows(layout, guide, salient)
    except ValueError as error:
        raise SettingsError(SALIENT_KEY, salient, f"text rows of the prompt ({error})") from error
