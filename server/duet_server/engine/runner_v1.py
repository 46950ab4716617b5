"""The worker's side under vLLM's V1 model runner: hand every step's plans to the attention metadata and the model."""

import functools
from collections.abc import Mapping
from typing import Any

from duet_server.engine.request_plans import RequestPlans, visual_spans
from duet_server.engine.step_layout import ScheduledRequest, StepLayout
from duet_server.plan import RequestPlan


class PlansMixin:
    """Two hooks on ``GPUModelRunner``: before attention metadata is built, and when a request is forgotten."""

    @functools.cached_property
    def plans(self: Any) -> RequestPlans:
        return RequestPlans(len(self.model.decoder.segments) - 1)

    def _build_attention_metadata(self: Any, **kwargs: Any) -> Any:
        # The batch order is final here. Profiling and graph capture come without scheduled tokens: nothing drops.
        scheduled = kwargs.get("num_scheduled_tokens")
        num_reqs = kwargs["num_reqs"]
        layout = self._step_layout(scheduled, num_reqs, kwargs.get("num_reqs_padded")) if scheduled else None
        self.model.decoder.step.layout = layout
        return super()._build_attention_metadata(**kwargs)  # type: ignore[misc]

    def _on_request_state_removed(self: Any, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)  # type: ignore[misc]
        self.plans.remove(req_id)

    def _step_layout(
        self: Any, num_scheduled: Mapping[str, int], num_reqs: int, num_reqs_padded: int | None
    ) -> StepLayout | None:
        computed = self.input_batch.num_computed_tokens_cpu
        requests = [
            ScheduledRequest(self._plan(req_id), int(computed[idx]), num_scheduled[req_id])
            for idx, req_id in enumerate(self.input_batch.req_ids[:num_reqs])
        ]
        requests += [ScheduledRequest(None, 0, 0)] * ((num_reqs_padded or num_reqs) - num_reqs)
        layout = StepLayout(requests, self.plans.num_boundaries + 1, self.device)
        return layout if layout.has_drops else None

    def _plan(self: Any, req_id: str) -> RequestPlan | None:
        """The request's plan, rebuilt from the state that vLLM sent along with it."""
        if req_id not in self.plans:
            request = self.requests[req_id]
            extra_args = request.sampling_params.extra_args if request.sampling_params else None
            spans = visual_spans(feature.mm_position for feature in request.mm_features)
            self.plans.add(req_id, request.num_prompt_tokens, spans, extra_args)
        return self.plans.get(req_id)


def adopt_runner(runner: Any) -> None:
    """Give a worker's V1 runner the hooks. Workers build their runner by name, so its class is exchanged afterwards."""
    runner.__class__ = type(f"Duet{type(runner).__name__}", (PlansMixin, type(runner)), {})
