"""vLLM's scheduling loop with prompts that drop: computed whole, passed by others for some steps, admitted in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups, get_request_block_hasher, init_none_hash
from vllm.v1.engine import FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import RequestStatus

from duet_server.engine import register
from duet_server.engine.kv_cache import SegmentSpec
from duet_server.engine.scheduler import MAX_STEPS_PASSED, DuetScheduler
from duet_server.engine.vllm_internals import AsyncScheduler, KVCacheConfig, Request
from duet_server.plan import Unit
from tests.golden_cases import NUM_PATCHES, checkpoint_path
from tests.held_counts import dropping_args

BUDGET = 400  # tokens of a step, and patches: two pictures of 144
BLOCK_SIZE = 16
ENOUGH_BLOCKS = 10_000
KEEP = (0.5, 0.0)
PICTURE = Unit(12, 12)  # NUM_PATCHES


@dataclass(frozen=True)
class Ask:
    """Pictures of ``entering`` tokens, a text token before each of them and ``num_text`` behind them."""

    num_text: int = 20
    num_pictures: int = 0
    entering: int = NUM_PATCHES
    keep: tuple[float, ...] | None = None
    max_tokens: int = 1
    priority: int = 0
    picture: str = ""  # name of the pictures, for requests that share them

    @property
    def num_tokens(self) -> int:
        return self.num_pictures * (1 + self.entering) + self.num_text

    @property
    def drops(self) -> bool:
        return self.keep is not None and self.num_pictures > 0

    def request(self, request_id: str, arrival_time: float) -> Request:
        features = [
            MultiModalFeatureSpec(
                data={"duet_units_image": SimpleNamespace(data=torch.tensor([PICTURE]))},
                modality="image",
                identifier=f"{self.picture or request_id}/{self.entering}/{idx}",
                mm_position=PlaceholderRange(offset=1 + idx * (1 + self.entering), length=self.entering),
            )
            for idx in range(self.num_pictures)
        ]
        spans = [(feature.mm_position.offset, feature.mm_position.offset + self.entering) for feature in features]
        extra_args = dropping_args(self.num_tokens, spans, self.keep) if self.keep else None
        params = SamplingParams(max_tokens=self.max_tokens, ignore_eos=True, extra_args=extra_args)
        return Request(
            request_id,
            [10 + int(request_id)] * self.num_tokens,
            params,
            None,
            mm_features=features,
            priority=self.priority,
            arrival_time=arrival_time,
            block_hasher=get_request_block_hasher(BLOCK_SIZE, sha256),
        )


def drops(num_tokens: int, num_pictures: int = 1, **settings: Any) -> Ask:
    """A prompt of so many tokens in all, from which stage 2 drops."""
    without_text = Ask(0, num_pictures, keep=KEEP, entering=10, **settings)
    return Ask(num_tokens - without_text.num_tokens, num_pictures, keep=KEEP, entering=10, **settings)


@dataclass
class Step:
    """What the scheduler gave a step."""

    num_tokens: dict[str, int]
    num_pictures: dict[str, int]
    num_computed: dict[str, int]  # before the step
    sampled: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def vllm_config() -> VllmConfig:
    register()
    init_none_hash(sha256)
    model = str(checkpoint_path("llava_gqa"))
    config = EngineArgs(
        model, max_num_batched_tokens=BUDGET, max_num_seqs=64, max_model_len=1200
    ).create_engine_config()
    config.cache_config.kv_cache_layout = "LBNHC"  # the engine sets this at its start
    return config


class Engine:
    """The scheduler, and a model that answers with token 7. A step's answers arrive ``delay`` steps later."""

    def __init__(
        self, config: VllmConfig, num_blocks: int = ENOUGH_BLOCKS, policy: str = "fcfs", delay: int = 0
    ) -> None:
        shape = {"block_size": BLOCK_SIZE, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
        specs = {str(idx): SegmentSpec(**shape, segment_idx=idx) for idx in range(3)}
        config.cache_config.num_gpu_blocks = num_blocks
        config.scheduler_config.policy = policy
        with set_current_vllm_config(config):
            self.scheduler = DuetScheduler(
                vllm_config=config,
                kv_cache_config=KVCacheConfig(num_blocks, [], get_kv_cache_groups(config, specs)),
                structured_output_manager=SimpleNamespace(accept_tokens=lambda request, tokens: True),
                block_size=BLOCK_SIZE,
            )
        self.delay = delay
        self.steps: list[Step] = []
        self.asks: dict[str, Ask] = {}
        self.requests: dict[str, Request] = {}
        self._in_flight: list[Any] = []

    def add(self, *asks: Ask) -> list[str]:
        ids = [str(len(self.asks) + idx) for idx in range(len(asks))]
        for request_id, ask in zip(ids, asks, strict=True):
            self.asks[request_id] = ask
            self.requests[request_id] = ask.request(request_id, arrival_time=float(request_id))
            self.scheduler.add_request(self.requests[request_id])
        return ids

    def step(self) -> Step:
        output = self.scheduler.schedule()
        num_tokens = output.num_scheduled_tokens
        step = Step(
            num_tokens,
            {request_id: len(pictures) for request_id, pictures in output.scheduled_encoder_inputs.items()},
            {request_id: self.requests[request_id].num_computed_tokens - num for request_id, num in num_tokens.items()},
            {request_id for request_id in num_tokens if not self.requests[request_id].is_prefill_chunk},
        )
        self.check(step)
        self.steps.append(step)
        self._in_flight.append((output, step))
        while self._in_flight and (len(self._in_flight) > self.delay or not num_tokens):
            self._receive(*self._in_flight.pop(0))
        return step

    def _receive(self, output: Any, step: Step) -> None:
        ids = list(step.num_tokens)
        tokens = [[7] if request_id in step.sampled else [] for request_id in ids]
        indices = {request_id: idx for idx, request_id in enumerate(ids)}
        self.scheduler.update_from_output(output, ModelRunnerOutput(ids, indices, tokens))

    def check(self, step: Step) -> None:
        """What holds for every step."""
        assert sum(step.num_tokens.values()) <= BUDGET
        patches = {request_id: num * NUM_PATCHES for request_id, num in step.num_pictures.items()}
        is_alone = len(patches) == 1 and self.asks[next(iter(patches))].drops
        assert sum(patches.values()) <= BUDGET or is_alone, f"{patches=}"
        for request_id, num_computed in step.num_computed.items():
            if self.asks[request_id].drops and num_computed == 0:
                assert step.num_tokens[request_id] >= self.asks[request_id].num_tokens, f"{request_id} was split"

    def first_step(self, request_id: str) -> int:
        """The number of the step that computed the request first."""
        return next(idx for idx, step in enumerate(self.steps) if request_id in step.num_tokens)

    def run(self) -> None:
        while self.scheduler.has_unfinished_requests():
            self.step()
            assert len(self.steps) < 20_000, "requests starve"
        assert not self.scheduler.requests
        assert not self.scheduler.plans._plans
        assert not self.scheduler.passed_since
        assert not any(self.scheduler.deferred_waiting)
        free_blocks = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        assert free_blocks == self.scheduler.cache_config.num_gpu_blocks - 1


def test_the_answer_need_not_fit_the_step(vllm_config: VllmConfig):
    engine = Engine(vllm_config)
    (request_id,) = engine.add(drops(BUDGET, max_tokens=700))
    engine.run()

    assert engine.steps[0].num_tokens == {request_id: BUDGET}
    assert engine.requests[request_id].num_output_tokens == 700


def test_a_prompt_longer_than_the_step_is_refused_alone(vllm_config: VllmConfig):
    engine = Engine(vllm_config)
    too_long, fits = engine.add(drops(BUDGET + 1), drops(BUDGET))
    engine.run()

    assert engine.steps[0].num_tokens == {fits: BUDGET}
    assert engine.requests[too_long].get_finished_reason() == FinishReason.ERROR
    assert engine.requests[fits].num_output_tokens == 1


@pytest.mark.parametrize("delay", [0, 1], ids=["sync", "async"])
def test_a_resumed_request_computes_its_prompt_at_once_and_its_outputs_in_chunks(vllm_config: VllmConfig, delay: int):
    engine = Engine(vllm_config, delay=delay)
    (request_id,) = engine.add(drops(300, max_tokens=700))
    while engine.requests[request_id].num_output_tokens < 600:
        engine.step()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    num_steps = len(engine.steps)
    engine.run()

    chunks = [(step.num_computed[request_id], step.num_tokens[request_id]) for step in engine.steps[num_steps:][:3]]
    assert [computed for computed, _ in chunks] == [0, BUDGET, 2 * BUDGET]
    assert [num for _, num in chunks] == [BUDGET, BUDGET, 100]
    assert engine.requests[request_id].num_output_tokens == 700


def busy_engine(vllm_config: VllmConfig, num_decodes: int, **arguments: Any) -> Engine:
    """An engine with so many requests that decode for the whole test."""
    engine = Engine(vllm_config, **arguments)
    engine.add(*[Ask(2, max_tokens=1000)] * num_decodes)
    for _ in range(MAX_STEPS_PASSED + 2):
        engine.step()
    return engine


def test_others_pass_a_prompt_that_does_not_fit_but_not_for_ever(vllm_config: VllmConfig):
    engine = busy_engine(vllm_config, num_decodes=20)
    start = len(engine.steps)
    (large,) = engine.add(drops(BUDGET - 10))
    others = []
    for _ in range(3 * MAX_STEPS_PASSED):
        others += engine.add(Ask(5, max_tokens=2))
        engine.step()

    assert [engine.first_step(other) - start for other in others[:MAX_STEPS_PASSED]] == list(range(MAX_STEPS_PASSED))
    own_step = engine.steps[engine.first_step(large)]
    assert engine.first_step(large) - start == MAX_STEPS_PASSED
    assert set(own_step.num_tokens) == {large, others[MAX_STEPS_PASSED]}, "the decodes pause for this step"
    assert len(engine.steps[engine.first_step(large) + 1].num_tokens) >= 20, "and go on in the next"


def test_a_prompt_of_the_whole_step_has_a_step_of_its_own_now_and_then(vllm_config: VllmConfig):
    engine = busy_engine(vllm_config, num_decodes=4)
    large = engine.add(*[drops(BUDGET)] * 3)
    for _ in range(5 * MAX_STEPS_PASSED):
        engine.step()

    own_steps = [engine.first_step(request_id) for request_id in large]
    assert [engine.steps[idx].num_tokens for idx in own_steps] == [{request_id: BUDGET} for request_id in large]
    assert [later - earlier for earlier, later in pairwise(own_steps)] == [MAX_STEPS_PASSED] * 2
    decode_only = [step for idx, step in enumerate(engine.steps[4:]) if idx + 4 not in own_steps]
    assert all(set("0123") <= set(step.num_tokens) for step in decode_only)


def test_prompts_that_wait_for_steps_of_their_own_stop_nobody(vllm_config: VllmConfig):
    engine = busy_engine(vllm_config, num_decodes=4)
    start = len(engine.steps)
    large = engine.add(*[drops(BUDGET - 2)] * 20)
    for _ in range(2 * MAX_STEPS_PASSED + 1):
        engine.step()
    later = engine.add(*[Ask(5)] * 30)
    engine.step()

    assert all(engine.requests[request_id].num_computed_tokens for request_id in later)
    engine.run()
    assert engine.first_step(large[-1]) - start == len(large) * MAX_STEPS_PASSED


@pytest.mark.parametrize("lacking", ["blocks", "a slot"])
def test_nobody_takes_what_a_prompt_that_waited_long_lacks(vllm_config: VllmConfig, lacking: str):
    num_blocks = 3 * 35 + 20 if lacking == "blocks" else ENOUGH_BLOCKS
    engine = busy_engine(vllm_config, num_decodes=20, num_blocks=num_blocks)
    engine.scheduler.max_num_active_reqs = 64 if lacking == "blocks" else 21
    (large,) = engine.add(drops(BUDGET - 10))
    for _ in range(MAX_STEPS_PASSED):
        engine.step()
    start = len(engine.steps)
    (later,) = engine.add(Ask(5))
    for _ in range(MAX_STEPS_PASSED if lacking == "blocks" else 0):
        assert set(engine.step().num_tokens) == set(map(str, range(20))), "the running requests go on"
    if lacking == "blocks":
        engine.scheduler.finish_requests(list(map(str, range(15))), RequestStatus.FINISHED_ABORTED)
    while not engine.requests[later].num_computed_tokens:
        engine.step()
    assert engine.first_step(large) <= engine.first_step(later)
    assert engine.first_step(large) - start <= 2 * MAX_STEPS_PASSED


def test_a_step_holds_no_more_than_its_size_whatever_may_be_scheduled(vllm_config: VllmConfig):
    scheduler_config = vllm_config.scheduler_config
    limit, scheduler_config.max_num_scheduled_tokens = scheduler_config.max_num_scheduled_tokens, 3 * BUDGET
    engine = Engine(vllm_config)
    scheduler_config.max_num_scheduled_tokens = limit
    too_long, fits, text = engine.add(drops(BUDGET + 1), drops(BUDGET), Ask(5))
    engine.run()

    assert engine.requests[too_long].get_finished_reason() == FinishReason.ERROR
    assert engine.requests[fits].num_output_tokens == engine.requests[text].num_output_tokens == 1


def test_embeddings_of_different_lengths_are_scheduled(vllm_config: VllmConfig):
    engine = Engine(vllm_config)
    (request_id,) = engine.add(Ask(8, 2, entering=10))
    engine.requests[request_id].mm_features[0].mm_position = PlaceholderRange(offset=1, length=3)
    engine.run()
    assert engine.requests[request_id].num_output_tokens == 1


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_nobody_waits_behind_pictures_that_the_step_has_no_room_for(vllm_config: VllmConfig, policy: str):
    engine = Engine(vllm_config, policy=policy)
    first, second, text = engine.add(drops(30, 2), drops(30, 1), Ask(20))

    assert set(engine.step().num_tokens) == {first, text}
    assert set(engine.step().num_tokens) == {second}


def test_priority_comes_first_and_age_second(vllm_config: VllmConfig):
    engine = busy_engine(vllm_config, num_decodes=20, policy="priority")
    start = len(engine.steps)
    low, high = engine.add(drops(BUDGET - 10, priority=1), drops(BUDGET - 9))
    for _ in range(3 * MAX_STEPS_PASSED):
        engine.step()

    assert engine.first_step(high) - start == MAX_STEPS_PASSED
    assert engine.first_step(low) - start == 2 * MAX_STEPS_PASSED


def scheduled_pictures(engine: Engine, num_steps: int) -> list[dict[str, int]]:
    return [engine.step().num_pictures for _ in range(num_steps)]


@pytest.mark.parametrize("entering", [10, NUM_PATCHES, NUM_PATCHES + 1])
def test_a_step_computes_so_many_patches_whatever_stage_1_leaves(vllm_config: VllmConfig, entering: int):
    engine = Engine(vllm_config)
    engine.add(*[Ask(1, 1, entering)] * 6)
    pictures = [sum(step.values()) for step in scheduled_pictures(engine, 3)]

    assert pictures == [BUDGET // NUM_PATCHES] * 3


def test_pictures_of_a_request_that_drops_are_computed_at_once(vllm_config: VllmConfig):
    engine = Engine(vllm_config)
    engine.add(drops(30), drops(100, 5), drops(100, 5), drops(30))

    assert scheduled_pictures(engine, 4) == [{"0": 1, "3": 1}, {"1": 5}, {"2": 5}, {}]


def test_pictures_of_a_request_with_stage_1_alone_may_be_split(vllm_config: VllmConfig):
    engine = Engine(vllm_config)
    engine.add(Ask(20, 5, 10))

    assert scheduled_pictures(engine, 4) == [{"0": 2}, {"0": 2}, {"0": 1}, {}]


def test_a_cached_picture_takes_no_room(vllm_config: VllmConfig):
    engine = Engine(vllm_config)
    engine.add(drops(30, picture="seen"))
    engine.step()
    engine.add(drops(30, 2), drops(30, picture="seen"), drops(30))

    assert scheduled_pictures(engine, 2) == [{"1": 2}, {"3": 1}]
    assert "2" in engine.steps[1].num_tokens


@pytest.fixture(scope="module")
def idle_scheduler(vllm_config: VllmConfig) -> DuetScheduler:
    return Engine(vllm_config).scheduler


@given(st.integers(0, BUDGET), st.integers(1, BUDGET), st.integers(0, 300), st.integers(1, 2))
def test_without_compression_the_encoder_is_scheduled_as_vllm_does(
    idle_scheduler: DuetScheduler, budget: int, num_new: int, num_computed: int, num_pictures: int
):
    scheduler = idle_scheduler
    request = Ask(200, num_pictures).request("0", arrival_time=0.0)
    scheduled, num_tokens, left, *others = scheduler._try_schedule_encoder_inputs(
        request, num_computed, num_new, budget
    )

    assert (scheduled, num_tokens, left, *others) == AsyncScheduler._try_schedule_encoder_inputs(
        scheduler, request, num_computed, num_new, budget
    )


ASKS = st.one_of(
    st.builds(Ask, st.integers(1, 900), max_tokens=st.integers(1, 40)),
    st.builds(
        Ask,
        st.integers(1, 120),
        st.integers(1, 5),
        st.sampled_from([3, 10, 40]),
        st.sampled_from([None, KEEP, (1.0, 0.5)]),
        max_tokens=st.integers(1, 40),
        priority=st.integers(0, 1),
        picture=st.sampled_from(["", "a", "b"]),
    ),
    st.builds(Ask, st.integers(1, 110), st.integers(1, 2), keep=st.sampled_from([None, KEEP])),
    st.builds(drops, st.integers(BUDGET - 30, BUDGET), max_tokens=st.integers(1, 400)),
).filter(lambda ask: not ask.drops or ask.num_tokens <= BUDGET)
ARRIVALS = st.lists(st.lists(ASKS, max_size=6), max_size=12)  # by step


def run_arrivals(engine: Engine, arrivals: list[list[Ask]]) -> dict[str, int]:
    """Run all requests. Returns the step in which each arrived."""
    arrived = {}
    for asks in arrivals:
        arrived |= dict.fromkeys(engine.add(*asks), len(engine.steps))
        engine.step()
    engine.run()
    return arrived


@given(ARRIVALS, st.sampled_from(["fcfs", "priority"]), st.integers(0, 1))
@settings(max_examples=40)
def test_every_request_ends_with_its_tokens(
    vllm_config: VllmConfig, arrivals: list[list[Ask]], policy: str, delay: int
):
    """In a cache of which a long request takes most, so that requests are preempted."""
    engine = Engine(vllm_config, 3 * -(-1200 // BLOCK_SIZE) + 20, policy, delay)
    run_arrivals(engine, arrivals)

    for request_id, request in engine.requests.items():
        assert request.num_output_tokens == engine.asks[request_id].max_tokens


@given(ARRIVALS, st.integers(0, 1))
@settings(max_examples=40)
def test_waiting_is_bounded(vllm_config: VllmConfig, arrivals: list[list[Ask]], delay: int):
    """With enough blocks: how long the first one in the queue waits."""
    engine = Engine(vllm_config, delay=delay)
    arrived = run_arrivals(engine, arrivals)
    first_steps = {request_id: engine.first_step(request_id) for request_id in engine.asks}

    admitted_before = -1
    for request_id, first_step in first_steps.items():
        waited = first_step - max(arrived[request_id], admitted_before)
        assert waited <= 2 * MAX_STEPS_PASSED + 1, f"{request_id} waited {waited} steps at the front"
        admitted_before = max(admitted_before, first_step)
