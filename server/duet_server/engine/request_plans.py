"""The plans of all requests in an engine process. Compression has no other mutable state per request."""

from collections.abc import Iterable
from typing import Any

from duet_server.plan import RequestPlan, VisualRows
from duet_server.plan.wire import decode_plan


class RequestPlans:
    """Plans by request id. A request without a plan holds all of its tokens in every segment."""

    def __init__(self, num_boundaries: int) -> None:
        self.num_boundaries = num_boundaries
        self._plans: dict[str, RequestPlan | None] = {}

    def add(self, request_id: str, num_prompt_tokens: int, mm_features: Iterable[Any], sampling_params: Any) -> None:
        """Store the request's plan, or that it drops nothing.

        Args:
            mm_features: vLLM's ``MultiModalFeatureSpec`` of every image.
            sampling_params: vLLM's, or None.

        Raises:
            SettingsError: if the request's settings cannot be served.
        """
        visual = VisualRows.of(feature.mm_position for feature in mm_features)
        extra_args = sampling_params.extra_args if sampling_params else None
        self._plans[request_id] = decode_plan(extra_args or {}, num_prompt_tokens, visual, self.num_boundaries)

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
