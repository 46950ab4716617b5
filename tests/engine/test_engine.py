"""KV caches that shrink, and requests that survive preemption, chunking and aborts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from duet_server.engine.vllm_internals import CUDAGraphMode
from duet_server.plan import guiding_rows, make_layout, make_plan
from tests.engine.in_process import IMAGE_TOKEN_ID, Ask, in_process_engine, noise_picture, text_ids
from tests.golden_cases import NUM_PATCHES, checkpoint_path

BLOCK_SIZE = 32
NUM_BLOCKS = 80  # without the null block; a request of max_model_len takes 64
SMALL_BUDGET, LARGE_BUDGET = 288, 2560  # tokens per step: one or two prefills, or all prefills of a test
KEEPS = ([0.5, 0.0], [0.5, 0.25], [0.75, 0.5], [0.0, 0.0])


@pytest.fixture(scope="module")
def engine():
    with in_process_engine(
        checkpoint_path("llava_gqa"),
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=NUM_BLOCKS + 1,
        max_model_len=512,
        max_num_batched_tokens=LARGE_BUDGET,
        max_num_seqs=16,
    ) as engine:
        engine.scheduler.max_num_scheduled_tokens = SMALL_BUDGET
        yield engine


@pytest.fixture(autouse=True)
def no_block_is_lost(engine):
    yield
    engine.run()
    assert engine.num_free_blocks == NUM_BLOCKS
    assert not engine.scheduler.plans._plans


def picture_ask(seed: int, num_text: int = 22, **settings) -> Ask:
    """A prompt of a picture and text, by default 22 tokens."""
    ids = [1, *text_ids(seed, 6), IMAGE_TOKEN_ID, *text_ids(seed + 1, num_text - 7)]
    return Ask(ids, [noise_picture(seed)], **settings)


def mixed_asks() -> list[Ask]:
    compressed = [picture_ask(idx, stage1=(40, 8, 4), keep=keep) for idx, keep in enumerate(KEEPS)]
    stage2_only = picture_ask(20, keep=[0.5, 0.25], guide="last")
    stage1_only = picture_ask(21, stage1=(20, 4, 0))
    return [picture_ask(10), *compressed, Ask([1, *text_ids(11, 300)]), stage2_only, stage1_only]


def planned_tokens(ask: Ask) -> list[int]:
    entering = ask.stage1[0] + ask.stage1[1] if ask.stage1 else NUM_PATCHES
    start = list(ask.input_ids).index(IMAGE_TOKEN_ID)
    layout = make_layout(len(ask.input_ids) - 1 + entering, [(start, start + entering)])
    plan = make_plan(layout, ask.keep or (1.0, 1.0), guiding_rows(layout, ask.guide))
    return [segment.num_tokens for segment in plan.segments]


def planned_blocks(ask: Ask, num_outputs: int = 0) -> dict[int, set[int]]:
    return {idx: {-(-(num + num_outputs) // BLOCK_SIZE)} for idx, num in enumerate(planned_tokens(ask))}


@pytest.fixture(scope="module")
def undisturbed(engine) -> list[list[int]]:
    """Tokens of the mixed asks, each served alone."""
    return [engine.tokens(ask)[0] for ask in mixed_asks()]


@pytest.mark.parametrize(
    "ask", [picture_ask(1), *[picture_ask(1, keep=keep) for keep in KEEPS]], ids=lambda a: str(a.keep)
)
def test_each_segment_holds_the_planned_blocks(engine, ask):
    request_id = engine.add(replace(ask, max_tokens=40))
    engine.engine.step()
    assert engine.block_counts(request_id) == planned_blocks(ask)
    for _ in range(30):
        engine.engine.step()
    num_computed = engine.internal_request(request_id).num_computed_tokens
    num_outputs = num_computed - planned_tokens(ask)[0]
    assert num_outputs >= 29
    assert engine.block_counts(request_id) == planned_blocks(ask, num_outputs)


@pytest.mark.parametrize(
    "settings", [{}, {"keep": [0.5, 0.0]}, {"stage1": (40, 8, 4), "keep": [0.5, 0.0]}], ids=["off", "stage 2", "both"]
)
def test_more_requests_run_at_once(engine, monkeypatch, settings):
    """Segments of 4, 2 and 2 layers have two, one and one KV-cache groups of two layers."""
    asks = [picture_ask(100 + idx, max_tokens=2, **settings) for idx in range(14)]
    blocks = planned_blocks(asks[0])
    assert blocks == planned_blocks(asks[0], num_outputs=2), "no segment needs another block while they run"
    per_request = 2 * blocks[0].pop() + blocks[1].pop() + blocks[2].pop()

    monkeypatch.setattr(engine.scheduler, "max_num_scheduled_tokens", LARGE_BUDGET)
    for ask in asks:
        engine.add(ask)
    engine.engine.step()
    assert len(engine.scheduler.running) == min(len(asks), NUM_BLOCKS // per_request)


def test_a_small_token_budget_changes_no_token(engine, undisturbed):
    assert engine.tokens(*mixed_asks()) == undisturbed


def test_preempted_requests_choose_the_same_tokens_again(engine, undisturbed):
    """Together, the requests need more than the cache while they decode."""
    asks = [replace(ask, max_tokens=50) for ask in mixed_asks() if ask.images]
    undisturbed, num_preempted = [], []
    for batch in (asks[:3], asks[3:]):
        undisturbed += run_counting_preemptions(engine, batch, num_preempted)
    assert sum(num_preempted) == 0, "these requests must not be preempted"

    assert run_counting_preemptions(engine, asks, num_preempted) == undisturbed
    assert num_preempted[-1] > 0, "the cache was large enough: this test tests nothing"


def run_counting_preemptions(engine, asks: list[Ask], num_preempted: list[int]) -> list[list[int]]:
    """The asks' tokens; appends how many requests with a plan were preempted."""
    ids, finished, preempted = [engine.add(ask) for ask in asks], {}, set()
    while engine.engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.engine.step() if output.finished}
        plans, requests = engine.scheduler.plans, engine.scheduler.requests.values()
        preempted |= {r.request_id for r in requests if r.num_preemptions and plans.get(r.request_id)}
    num_preempted.append(len(preempted))
    return [list(finished[request_id].outputs[0].token_ids) for request_id in ids]


def test_a_resumed_request_computes_its_outputs_in_chunks(engine):
    ask = picture_ask(3, num_text=SMALL_BUDGET - NUM_PATCHES - 10, keep=[0.5, 0.0], max_tokens=60)
    (undisturbed,) = engine.tokens(ask)

    request_id = engine.add(ask)
    request = engine.internal_request(request_id)
    while request.num_output_tokens < 50:
        engine.engine.step()
    engine.engine.reset_prefix_cache(reset_running_requests=True)
    engine.engine.step()
    assert request.num_preemptions == 1
    assert planned_tokens(ask)[0] < request.num_computed_tokens <= SMALL_BUDGET < request.num_tokens
    assert list(engine.run()[request_id].outputs[0].token_ids) == undisturbed


def test_running_requests_pause_for_a_prompt_of_a_whole_step(engine):
    asks = [picture_ask(seed, keep=keep, max_tokens=30) for seed, keep in enumerate([[0.5, 0.0], None])]
    large = picture_ask(7, num_text=SMALL_BUDGET - NUM_PATCHES, keep=[0.5, 0.25])
    undisturbed = [engine.tokens(ask)[0] for ask in (*asks, large)]

    ids = [engine.add(ask) for ask in asks]
    for _ in range(4):
        engine.engine.step()
    ids.append(engine.add(large))
    num_own_steps = engine.scheduler._own_step
    finished = engine.run()
    assert engine.scheduler._own_step > num_own_steps
    assert [list(finished[request_id].outputs[0].token_ids) for request_id in ids] == undisturbed


def test_a_batch_without_requests_writes_nothing(engine, undisturbed, monkeypatch):
    """As on an idle data-parallel rank, while the block tables hold the blocks of a request."""
    request_id = engine.add(mixed_asks()[1])
    for _ in range(3):
        engine.engine.step()
    decoder, runner = engine.model.decoder, engine.core.model_executor.driver_worker.worker.model_runner
    caches = [layer.self_attn.attn.kv_cache for segment in decoder.segments for layer in segment.layers]
    before = [cache.clone() for cache in caches]
    with monkeypatch.context() as patch:
        patch.setattr(decoder.step._vllm_config.compilation_config, "cudagraph_mode", CUDAGraphMode.FULL_DECODE_ONLY)
        runner._dummy_run(1, uniform_decode=True, force_attention=True)
    assert decoder.step.layout is not None, "the rows were not placed: this test tests nothing"
    assert all(cache.equal(earlier) for cache, earlier in zip(caches, before, strict=True))
    assert list(engine.run()[request_id].outputs[0].token_ids) == undisturbed[1]


def test_prefix_cache_serves_uncompressed_requests_only(engine, undisturbed):
    plain, compressed = mixed_asks()[:2]
    same_picture = replace(compressed, input_ids=plain.input_ids, images=plain.images, stage1=None)
    engine.scheduler.reset_prefix_cache()
    cold = engine.tokens(same_picture)[0]
    assert cached_tokens(engine, plain) == (undisturbed[0], 0), "a compressed request must leave nothing behind"
    tokens, num_cached = cached_tokens(engine, plain)
    assert (tokens, num_cached > 0) == (undisturbed[0], True)
    assert cached_tokens(engine, same_picture) == (cold, 0), "a compressed request must not read the cache"


def cached_tokens(engine, ask: Ask) -> tuple[list[int], int]:
    request_id = engine.add(ask)
    output = engine.run()[request_id]
    return list(output.outputs[0].token_ids), output.num_cached_tokens


@pytest.mark.parametrize("num_steps", [0, 1, 5], ids=["waiting", "prefill", "decode"])
def test_abort_frees_every_group(engine, undisturbed, num_steps):
    asks = mixed_asks()
    ids = [engine.add(ask) for ask in asks]
    for _ in range(num_steps):
        engine.engine.step()
    survivor = ids.pop(1)
    engine.engine.abort_request(ids)
    assert list(engine.run()[survivor].outputs[0].token_ids) == undisturbed[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"held": [144, 72]},
        {"held": [144, 0, 72]},
        {"held": [144, "x", 0]},
        {"held": [144, 72.0, 0]},
        {"held": [143, 72, 0]},
        {"held": [144, 72, -1]},
        {"keep": [0.5, 0.0], "guide": "nobody"},
        {"keep": [0.5, 0.0], "guide": "salient", "salient": [9999]},
        {"keep": [0.5, 0.0], "guide": "salient", "salient": ["x"]},
        {"keep": [0.5, 0.0], "num_text": SMALL_BUDGET},
    ],
    ids=str,
)
def test_settings_that_cannot_be_served_end_one_request(engine, undisturbed, changes):
    bystander = engine.add(mixed_asks()[1])
    refused = engine.add(picture_ask(30, **changes))
    finished = engine.run()
    assert finished[refused].outputs[0].finish_reason == "error"
    assert list(finished[bystander].outputs[0].token_ids) == undisturbed[1]
