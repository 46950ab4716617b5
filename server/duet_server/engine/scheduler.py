"""The scheduler: makes a plan when a request arrives, and never splits a prefill that drops."""

from typing import Any

from duet_server.engine.kv_cache import SegmentManager, check_groups
from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import AsyncScheduler, Request, init_logger
from duet_server.plan import SettingsError

logger = init_logger(__name__)


class DuetScheduler(AsyncScheduler):
    """vLLM's scheduler, extended to allocate the KV cache of each segment by the request's plan."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        num_boundaries = len(self.vllm_config.additional_config["duet"]["boundaries"])
        check_groups(self.kv_cache_config, num_boundaries + 1)
        self.plans = RequestPlans(num_boundaries)
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            assert isinstance(manager, SegmentManager), type(manager)
            manager.plans = self.plans

    def add_request(self, request: Request) -> None:
        try:
            self._add_plan(request)
        except SettingsError as error:
            # The API refuses these earlier. If one arrives another way, add it to the set of requests that vLLM
            # finishes with an error in its next step (``update_from_output``), so that the engine survives.
            logger.error("Request %s refused: %s", request.request_id, error)
            self.encoder_cache_mismatch_reqs.add(request.request_id)
            request.sampling_params = request.sampling_params.clone()
            request.sampling_params.extra_args = None  # workers may still see it; they must not make a plan
        super().add_request(request)

    def _add_plan(self, request: Request) -> None:
        self.plans.add(request.request_id, request.num_prompt_tokens, request.mm_features, request.sampling_params)
        if self.plans.get(request.request_id) is None:
            return
        if request.resumable:
            self.plans.remove(request.request_id)
            raise SettingsError("resumable", True, "False: a prefill that drops needs the whole prompt at once")
        request.skip_reading_prefix_cache = True
        longest = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        if longest > self.max_num_scheduled_tokens:
            self.plans.remove(request.request_id)
            raise SettingsError(
                "prompt and max_tokens", longest, f"at most {self.max_num_scheduled_tokens} tokens together"
            )

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        **kwargs: Any,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """Make a prefill that drops wait until it fits one step: its tokens are chosen from the whole prompt."""
        scheduled = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, **kwargs
        )
        is_prefill = num_computed_tokens == 0 and self.plans.get(request.request_id) is not None
        if not is_prefill or scheduled[1] == request.num_tokens:
            return scheduled
        self.encoder_cache_manager.free(request)
        return [], 0, encoder_compute_budget, [], []

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.plans.remove(request.request_id)
