"""The keys that carry a request's settings from the API's process to the engine's, with their encoders and decoders.

vLLM passes two mappings of a request through unchanged. The image processor reads ``mm_processor_kwargs``. The
scheduler and every worker read ``extra_args`` of the sampling parameters. The API refuses requests in which a client
sets these keys.
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
SALIENT_KEY = "duet_salient"  # in extra_args, for the guide "salient": the prompt rows of salient words
TRACE_KEY = "duet_trace"  # in both, then a field of every picture, TracedPicture: the id of the trace
MAX_TRACE_ID = (1 << 63) - 1


class Stage1Counts(NamedTuple):
    """Stage 1's counts for one picture; a ``cluster_width`` of 0 sets no limit."""

    dominant: int
    contextual: int
    cluster_width: int

    @classmethod
    def of(cls, settings: CompressionSettings) -> Stage1Counts:
        """The counts of settings with stage 1 on."""
        assert settings.dominant is not None, f"{settings=}"
        return cls(settings.dominant, settings.contextual, settings.cluster_width or 0)

    @property
    def num_entering(self) -> int:
        """Visual tokens that enter the language model."""
        return self.dominant + self.contextual


NO_STAGE1 = Stage1Counts(0, 0, 0)


class TracedPicture(NamedTuple):
    """The ``TRACE_KEY`` field of a picture: trace id, the picture's number in the prompt, its size in pixels."""

    trace_id: int
    image_idx: int
    width: int
    height: int


def encode_processor_kwargs(settings: CompressionSettings | None, trace_id: int = 0) -> dict[str, Any]:
    """The keys to add to ``mm_processor_kwargs``: stage 1's counts unless it is off, the trace id unless it is 0."""
    kwargs: dict[str, Any] = {TRACE_KEY: trace_id} if trace_id else {}
    if settings is not None and settings.dominant is not None:
        kwargs[STAGE1_KEY] = list(Stage1Counts.of(settings))
    return kwargs


def decode_stage1(processor_kwargs: Mapping[str, Any], num_patches: int) -> Stage1Counts:
    """Stage 1's counts for pictures of ``num_patches`` patches; ``NO_STAGE1`` if the key is absent.

    Raises:
        SettingsError: if the counts would fail in the engine.
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
    """The keys to add to ``extra_args`` of a request whose tokens stage 2 drops.

    Args:
        settings: the request's settings.
        salient: the prompt rows of salient words; used only with the guide ``salient``.
        trace_id: the id of the request's trace; 0 for no trace.
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

    A pure function: the scheduler and every worker get the same arguments from vLLM, and so build the same plan.

    Raises:
        SettingsError: if keeps or guiding rows do not fit the model or the prompt.
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
    if not isinstance(salient, list | tuple) or set(map(type, salient)) - {int}:
        raise SettingsError(SALIENT_KEY, salient, "a list of prompt rows")
    try:
        return guiding_rows(layout, guide, salient)
    except ValueError as error:
        raise SettingsError(SALIENT_KEY, salient, f"text rows of the prompt ({error})") from error
