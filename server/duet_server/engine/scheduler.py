"""The scheduler: makes a plan when a request arrives, and computes a prompt that drops in one step, as a whole."""

from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput

from duet_server.engine.kv_cache import SegmentManager, check_groups
from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import AsyncScheduler, Request, init_logger
from duet_server.plan import SettingsError, excess_positions
from duet_server.plan.wire import units_of

logger = init_logger(f"vllm.{__name__}")

# After so many steps, a prompt that drops and that no step has room for gets a step of its own.
MAX_STEPS_PASSED = 8
# So many of them a step passes over; it admits nobody behind them, since to walk a long queue takes milliseconds.
MAX_PROMPTS_PASSED = 64
NO_LIMIT = 1 << 60  # of vLLM's own count of visual tokens


class DuetScheduler(AsyncScheduler):
    """vLLM's scheduler, extended to allocate the KV cache of each segment by the request's plan.

    A prompt that drops is never split. While a step has no room for it, the requests behind it go first. Every
    ``MAX_STEPS_PASSED`` steps the running requests pause for one step, so that the first of such prompts gets in, even
    if it takes the whole step. If it lacks what only running requests can free, nobody behind it is admitted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        boundaries = self.vllm_config.additional_config["duet"]["boundaries"]
        check_groups(self.kv_cache_config, len(boundaries) + 1)
        self.plans = RequestPlans(len(boundaries))
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            assert isinstance(manager, SegmentManager), type(manager)
            manager.plans = self.plans
        self.passed_since: dict[str, int] = {}  # by request id, the first step that had no room for the prompt
        self._own_step = 0  # the last step in which the running requests paused
        self._last_to_admit: str | None = None  # the request behind which nobody is admitted

    @property
    def step_tokens(self) -> int:
        """The most tokens of a step. vLLM accepts a limit of scheduled tokens above the step's size, and keeps both."""
        limit: int = self.max_num_scheduled_tokens
        return min(limit, self.scheduler_config.max_num_batched_tokens)

    def add_request(self, request: Request) -> None:
        try:
            self._add_plan(request)
        except SettingsError as error:
            # The API refuses these earlier. If one arrives another way, add it to the set of requests that vLLM
            # finishes with an error in its next step (``update_from_output``), so that the engine survives.
            logger.error("Request %s refused: %s", request.request_id, error)
            self.encoder_cache_mismatch_reqs.add(request.request_id)
        super().add_request(request)

    def _check_positions(self, request: Request) -> None:
        """Raise SettingsError if the request would take more positions than the decoder has."""
        most = (self.vllm_config.additional_config["duet"]["served"] or {}).get("max_positions")
        units = (unit for feature in request.mm_features for unit in units_of(feature.data, feature.modality))
        excess = excess_positions(units)
        if most is not None and excess > max(0, most - self.vllm_config.model_config.max_model_len):
            raise SettingsError("duet_stage1", excess, "more visual tokens: these are positions without a token")

    def _add_plan(self, request: Request) -> None:
        self._check_positions(request)
        self.plans.add(request.request_id, request.num_prompt_tokens, request.mm_features, request.sampling_params)
        if self.plans.get(request.request_id) is None:
            return
        if request.resumable:
            self.plans.remove(request.request_id)
            raise SettingsError("resumable", True, "False: a prompt that drops is computed at once")
        if request.num_prompt_tokens > self.step_tokens:
            self.plans.remove(request.request_id)
            expected = f"at most {self.step_tokens}, because a prompt that drops is computed in one step"
            raise SettingsError("the number of prompt tokens", request.num_prompt_tokens, expected)
        request.skip_reading_prefix_cache = True

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # The rest of the step: less what the first ``_num_counted`` running requests and all pictures so far take.
        self._num_counted, self._tokens_left = 0, self.step_tokens
        self._patches_left = self.max_num_encoder_input_tokens
        self._last_to_admit, self._num_passed = None, 0
        step = self.current_step + 1  # as vLLM will count it
        first = self.waiting.peek_request() if self.waiting else None
        if first is not None and step - self.passed_since.get(first.request_id, step) >= MAX_STEPS_PASSED:
            has_blocks, num_slots = self._has_blocks(first), self.max_num_active_reqs - len(self.running)
            if not has_blocks or num_slots <= 1:
                self._last_to_admit = first.request_id
            if has_blocks and num_slots > 0 and not throttle_prefills and self._needs_own_step(first, step):
                self._own_step = step
                self._num_counted = len(self.running)
                for request in self.running:
                    request.next_decode_eligible_step = step + 1
        output = super().schedule(throttle_prefills)
        for request_id in output.num_scheduled_tokens if self.passed_since else ():
            self.passed_since.pop(request_id, None)
        return output

    def _needs_own_step(self, request: Request, step: int) -> bool:
        is_time = step - self._own_step >= MAX_STEPS_PASSED and self.pause_state == PauseState.UNPAUSED
        return is_time and request.num_prompt_tokens > self.step_tokens - sum(map(_num_tokens_due, self.running))

    def _has_blocks(self, request: Request) -> bool:
        """Whether the KV cache has room for the whole prompt."""
        manager = self.kv_cache_manager
        num_tokens = request.num_prompt_tokens
        num_blocks = sum(
            segment.get_num_blocks_to_allocate(request.request_id, num_tokens, (), 0, 0, num_tokens)
            for segment in manager.coordinator.single_type_managers
        )
        return num_blocks + manager.watermark_blocks <= manager.block_pool.get_num_free_blocks()

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        """Whether vLLM may try to admit the request. If not, the request keeps its place, and the next one is tried."""
        is_refused = request.request_id in self.encoder_cache_mismatch_reqs
        if is_refused or not super()._handle_blocked_waiting_request(request):
            return False
        if self._fits(request):
            return True
        self.passed_since.setdefault(request.request_id, self.current_step)
        self._num_passed += 1
        return request.request_id == self._last_to_admit or self._num_passed > MAX_PROMPTS_PASSED

    def _fits(self, request: Request) -> bool:
        """Whether the rest of the step has room. A request that drops nothing always fits, since it may be split."""
        if self.plans.get(request.request_id) is None:
            return True
        self._tokens_left -= sum(map(_num_tokens_due, self.running[self._num_counted :]))
        self._num_counted = len(self.running)  # while vLLM admits requests, the list only grows
        return request.num_prompt_tokens <= self._tokens_left and self._has_room_for_pictures(request)

    def _has_room_for_pictures(self, request: Request) -> bool:
        if self._patches_left == self.max_num_encoder_input_tokens:
            return True
        cached = self.encoder_cache_manager.get_cached_num_encoder_embeds
        features = enumerate(request.mm_features)
        uncached = {feature.identifier: feature for idx, feature in features if cached(request, idx) is None}
        return sum(map(_num_encoded, uncached.values())) <= self._patches_left

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        **kwargs: Any,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        """Count the encoder's budget before stage 1, and make a prompt that drops wait until it fits one step.

        vLLM counts the tokens of a picture behind stage 1, but the tower computes all of them.
        """
        is_whole = num_computed_tokens == 0 and self.plans.get(request.request_id) is not None
        if not is_whole or encoder_compute_budget < self.max_num_encoder_input_tokens:
            # A prompt that drops may exceed the budget if it is alone, since it cannot be split.
            num_new_tokens = self._tokens_within(request, num_computed_tokens, num_new_tokens, encoder_compute_budget)
        scheduled, num_new_tokens, _, external, duplicates = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, NO_LIMIT, **kwargs
        )
        if is_whole and num_new_tokens < request.num_prompt_tokens:
            self.encoder_cache_manager.free(request)
            return [], 0, encoder_compute_budget, [], []
        spent = sum(_num_encoded(request.mm_features[idx]) for idx in scheduled)
        self._patches_left = max(0, encoder_compute_budget - spent)
        return scheduled, num_new_tokens, self._patches_left, external, duplicates

    def _tokens_within(self, request: Request, num_computed: int, num_new: int, budget: int) -> int:
        """The new tokens before the first picture that the encoder's budget does not admit."""
        counted = set()
        for idx, feature in enumerate(request.mm_features):
            place = feature.mm_position
            if place.offset >= num_computed + num_new:
                break
            is_cached = self.encoder_cache_manager.get_cached_num_encoder_embeds(request, idx) is not None
            if is_cached or feature.identifier in counted or place.offset + place.length <= num_computed:
                continue
            counted.add(feature.identifier)
            budget -= _num_encoded(feature)
            if budget < 0:
                return max(0, place.offset - num_computed)
        return num_new

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.plans.remove(request.request_id)
        self.passed_since.pop(request.request_id, None)


def _num_encoded(feature: Any) -> int:
    """The visual tokens that the tower computes for a picture, before stage 1."""
    units = units_of(feature.data, feature.modality)
    return sum(unit.num_tokens for unit in units) or feature.mm_position.get_num_embeds()


def _num_tokens_due(request: Request) -> int:
    """Tokens that a step computes of a running request, if it has room for all of them."""
    return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
