"""The plans of the requests that an engine process knows: the one mutable per-request state of compression."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from duet_server.plan import (
    TEXT_CHOICES,
    PromptLayout,
    RequestPlan,
    SettingsError,
    check_ends_on_text,
    guiding_rows,
    make_layout,
    make_plan,
)

STAGE1 = "duet_stage1"  # in mm_processor_kwargs: [dominant, contextual, cluster_width]; absent: stage 1 off
KEEP, TEXT, GUIDE = "duet_keep", "duet_text", "duet_guide"  # in the sampling parameters' extra_args
TRACE = "duet_trace"  # in both, of requests that someone wants to look at: an id, unique, from 1 to 2**63 - 1


class RequestPlans:
    """Plans by request id. A request without a plan holds all of its tokens in every segment."""

    def __init__(self, num_boundaries: int) -> None:
        self.num_boundaries = num_boundaries
        self._plans: dict[str, RequestPlan | None] = {}

    def add(self, request_id: str, num_prompt_tokens: int, mm_features: Iterable[Any], sampling_params: Any) -> None:
        """Remember the request's plan, or that it drops nothing.

        Args:
            mm_features: vLLM's ``MultiModalFeatureSpec`` of every image.
            sampling_params: vLLM's, or None.

        Raises:
            SettingsError: the request's settings cannot be served.
        """
        spans = visual_spans(feature.mm_position for feature in mm_features)
        extra_args = sampling_params.extra_args if sampling_params else None
        self._plans[request_id] = plan_request(num_prompt_tokens, spans, extra_args or {}, self.num_boundaries)

    def remove(self, request_id: str) -> None:
        self._plans.pop(request_id, None)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._plans

    def get(self, request_id: str) -> RequestPlan | None:
        return self._plans.get(request_id)

    def dropped(self, request_id: str, segment_idx: int) -> int:
        """Tokens of the request that the segment does not hold."""
        plan = self._plans.get(request_id)
        return plan.segments[segment_idx].dropped if plan else 0


def visual_spans(positions: Iterable[Any]) -> list[tuple[int, int]]:
    """Where the prompt's images lie, ``[start, end)``, from vLLM's placeholder ranges."""
    return [(position.offset, position.offset + position.length) for position in positions]


def plan_request(
    num_prompt_tokens: int,
    visual_spans: Sequence[tuple[int, int]],
    extra_args: Mapping[str, Any],
    num_boundaries: int,
) -> RequestPlan | None:
    """The plan of a request from its sampling parameters' ``extra_args``; None if it drops nothing.

    Pure: the scheduler and every worker rebuild the same plan from what vLLM hands each of them.

    Raises:
        SettingsError: keeps or guiding rows that do not fit the model or the prompt.
    """
    keep = extra_args.get(KEEP)
    if keep is None or not visual_spans:
        return None
    layout = make_layout(num_prompt_tokens, visual_spans)
    _check_keep(keep, num_boundaries)
    plan = make_plan(layout, keep, _guiding(layout, extra_args.get(TEXT, "all"), extra_args.get(GUIDE, [])))
    plan = replace(plan, trace_id=extra_args.get(TRACE, 0))
    if not plan.drops:
        return None
    check_ends_on_text(layout)
    return plan


def _check_keep(keep: Any, num_boundaries: int) -> None:
    is_list = isinstance(keep, list | tuple) and all(type(share) in (int, float) for share in keep)
    shares = [1, *keep, 0] if is_list else []
    if len(shares) != num_boundaries + 2 or not all(later <= earlier for earlier, later in pairwise(shares)):
        raise SettingsError(KEEP, keep, f"{num_boundaries} numbers from 1 to 0 that do not rise, one per boundary")


def _guiding(layout: PromptLayout, text: Any, salient: Any) -> tuple[int, ...]:
    if text not in TEXT_CHOICES:
        raise SettingsError(TEXT, text, f"one of {', '.join(TEXT_CHOICES)}")
    if not isinstance(salient, list | tuple) or not all(type(row) is int for row in salient):
        raise SettingsError(GUIDE, salient, "a list of prompt rows")
    try:
        return guiding_rows(layout, text, salient)
    except ValueError as error:
        raise SettingsError(GUIDE, salient, f"text rows of the prompt ({error})") from error
