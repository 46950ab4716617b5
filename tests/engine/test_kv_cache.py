"""vLLM's KV-cache groups by segment, and blocks for the tokens that a segment holds."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.multimodal.inputs import PlaceholderRange
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups, get_request_block_hasher, init_none_hash

from duet_server.engine.kv_cache import SegmentManager, SegmentSpec, check_groups, register_spec
from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import FullAttentionSpec, KVCacheConfig, KVCacheSpecRegistry, Request
from tests.held_counts import dropping_args

BLOCK_SIZE = 4
SHAPE = {"block_size": BLOCK_SIZE, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
# The segments hold 20, 10 and 0 of 20 visual tokens.
IMAGES, KEEP = [SimpleNamespace(mm_position=PlaceholderRange(offset=3, length=20))], [0.5, 0.0]


def segment_spec(segment_idx: int) -> SegmentSpec:
    return SegmentSpec(**SHAPE, segment_idx=segment_idx)


@pytest.fixture(scope="module")
def vllm_config() -> VllmConfig:
    config = VllmConfig()
    config.cache_config.kv_cache_layout = "LBNHC"  # the engine sets this at its start
    return config


def cut(vllm_config: VllmConfig, segment_layers: tuple[int, ...]) -> KVCacheConfig:
    """vLLM's groups for layers that are named after their segment: 0.0, 0.1, ..., 1.0, ..."""
    specs = {
        f"{segment_idx}.{layer}": segment_spec(segment_idx)
        for segment_idx, num_layers in enumerate(segment_layers)
        for layer in range(num_layers)
    }
    return KVCacheConfig(num_blocks=64, kv_cache_tensors=[], kv_cache_groups=get_kv_cache_groups(vllm_config, specs))


def test_specs_merge_within_a_segment():
    spec = segment_spec(1)
    merged = SegmentSpec.merge([spec, segment_spec(1), segment_spec(1)])

    assert merged == spec
    assert merged is not spec
    assert spec.is_uniform_with_collection({"a": segment_spec(1), "b": segment_spec(1)})


@pytest.mark.parametrize(
    "other",
    [segment_spec(1), replace(segment_spec(0), num_kv_heads=1), FullAttentionSpec(**SHAPE)],
    ids=["another segment", "another shape", "no segment"],
)
def test_specs_that_differ_do_not_merge(other: FullAttentionSpec):
    with pytest.raises(AssertionError, match="different segments"):
        SegmentSpec.merge([segment_spec(0), other])
    assert not segment_spec(0).is_uniform_with_collection({"a": segment_spec(0), "b": other})


def test_vllm_builds_our_manager_however_often_we_register():
    register_spec()

    assert KVCacheSpecRegistry.get_manager_class(segment_spec(0)) is SegmentManager


@pytest.mark.parametrize(
    ("segment_layers", "expected"),
    [
        ((4, 2, 2), [{"0.0", "0.2"}, {"0.1", "0.3"}, {"1.0", "1.1"}, {"2.0", "2.1"}]),
        ((1, 1), [{"0.0"}, {"1.0"}]),
        ((2,), [{"0.0", "0.1"}]),
    ],
    ids=["4/2/2", "1/1", "2"],
)
def test_groups_hold_one_segment(vllm_config: VllmConfig, segment_layers: tuple[int, ...], expected: list[set[str]]):
    config = cut(vllm_config, segment_layers)

    assert [set(group.layer_names) for group in config.kv_cache_groups] == expected
    check_groups(config, len(segment_layers))


@pytest.mark.parametrize("segment_layers", [(16, 8, 8), (15, 9, 8), (10, 11, 11), (2, 8, 8, 14)], ids=str)
def test_no_group_mixes_segments(vllm_config: VllmConfig, segment_layers: tuple[int, ...]):
    config = cut(vllm_config, segment_layers)

    check_groups(config, len(segment_layers))
    for group in config.kv_cache_groups:
        assert {int(name.split(".")[0]) for name in group.layer_names} == {group.kv_cache_spec.segment_idx}
    assert sum(len(group.layer_names) for group in config.kv_cache_groups) == sum(segment_layers)


def test_missing_and_foreign_groups_are_noticed(vllm_config: VllmConfig):
    with pytest.raises(AssertionError, match="num_segments=3"):
        check_groups(cut(vllm_config, (2, 2)), 3)
    with pytest.raises(AssertionError, match="num_segments=1"):
        check_groups(cut(vllm_config, (2, 2)), 1)
    stock = get_kv_cache_groups(vllm_config, {"a": FullAttentionSpec(**SHAPE), "b": FullAttentionSpec(**SHAPE)})
    with pytest.raises(AssertionError, match="without a segment"):
        check_groups(KVCacheConfig(num_blocks=64, kv_cache_tensors=[], kv_cache_groups=stock), 1)


class Cache:
    """vLLM's manager over the groups of 4/2/2 layers, with the scheduler's plans."""

    segments = (0, 0, 1, 2)  # of each group

    def __init__(self, vllm_config: VllmConfig) -> None:
        init_none_hash(sha256)
        self.manager = KVCacheManager(
            cut(vllm_config, (4, 2, 2)), max_model_len=256, scheduler_block_size=BLOCK_SIZE, hash_block_size=BLOCK_SIZE
        )
        self.plans = RequestPlans(num_boundaries=2)
        for manager in self.manager.coordinator.single_type_managers:
            assert isinstance(manager, SegmentManager)
            manager.plans = self.plans

    def request(self, request_id: str, num_tokens: int = 30, keep: list[float] | None = None) -> Request:
        extra_args = dropping_args(num_tokens, [(3, 23)], keep) if keep else None
        self.plans.add(request_id, num_tokens, IMAGES, SamplingParams(extra_args=extra_args))
        block_hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        return Request(request_id, list(range(num_tokens)), SamplingParams(), None, block_hasher=block_hasher)

    def compute(self, request: Request, num_tokens: int) -> bool:
        """Compute one step of the request. Returns False if the cache is full."""
        if self.manager.allocate_slots(request, num_tokens) is None:
            return False
        request.num_computed_tokens += num_tokens
        return True

    def num_blocks(self, request: Request) -> list[int]:
        return [len(ids) for ids in self.manager.get_block_ids(request.request_id)]


@pytest.fixture
def cache(vllm_config: VllmConfig) -> Cache:
    return Cache(vllm_config)


def blocks_for(*num_tokens: int) -> list[int]:
    return [ceil(count / BLOCK_SIZE) for count in num_tokens]


def test_prefill_and_decode_take_blocks_for_what_is_held(cache: Cache):
    request = cache.request("drops", keep=KEEP)
    assert cache.compute(request, 30)
    assert cache.num_blocks(request) == blocks_for(30, 30, 20, 10) == [8, 8, 5, 3]

    for length in range(31, 60):
        request.append_output_token_ids(length)
        assert cache.compute(request, 1)
        assert cache.num_blocks(request) == blocks_for(length, length, length - 10, length - 20)


@settings(max_examples=50)
@given(num_tokens=st.integers(24, 55), keep=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda k: sorted(k)[::-1]))
def test_a_segments_manager_asks_for_what_it_takes(vllm_config: VllmConfig, num_tokens: int, keep: list[float]):
    cache = Cache(vllm_config)
    cache.request("any", num_tokens, keep)
    for length in (num_tokens, num_tokens + 1, num_tokens + 5):
        for segment_idx, manager in zip(cache.segments, cache.manager.coordinator.single_type_managers, strict=True):
            dropped = 0 if segment_idx == 0 else 20 - int(20 * keep[segment_idx - 1])
            asked = manager.get_num_blocks_to_allocate("any", length, [], 0, 0, length)
            taken = manager.allocate_new_blocks("any", length, length)
            assert len(taken) == asked
            assert len(manager.req_to_blocks["any"]) == ceil((length - dropped) / BLOCK_SIZE)


@pytest.mark.parametrize("keep", [None, [1.0, 1.0]], ids=["off", "keeps of one"])
def test_requests_without_a_plan_take_blocks_for_every_token(cache: Cache, keep: list[float] | None):
    request = cache.request("stays", keep=keep)
    assert cache.compute(request, 18)  # in two chunks
    assert cache.num_blocks(request) == blocks_for(18, 18, 18, 18)
    assert cache.compute(request, 12)
    assert cache.num_blocks(request) == blocks_for(30, 30, 30, 30)


def test_managers_without_plans_hold_every_token(cache: Cache):
    request = cache.request("drops", keep=KEEP)
    for manager in cache.manager.coordinator.single_type_managers:
        manager.plans = None
    assert cache.compute(request, 30)

    assert cache.num_blocks(request) == blocks_for(30, 30, 30, 30)


def test_room_is_counted_by_what_is_held(cache: Cache):
    """63 free blocks admit two requests of 24 blocks but no third; at 32 blocks each, they would admit only one."""
    requests = [cache.request(name, keep=KEEP) for name in "abc"]

    assert [cache.compute(request, 30) for request in requests] == [True, True, False]
    cache.manager.free(requests[0])
    assert cache.compute(requests[2], 30)


def test_a_preempted_request_takes_the_same_blocks_again(cache: Cache):
    request = cache.request("drops", keep=KEEP)
    free = cache.manager.block_pool.get_num_free_blocks()
    assert cache.compute(request, 30)
    cache.manager.free(request)
    assert cache.manager.block_pool.get_num_free_blocks() == free

    request.num_computed_tokens = 0
    request.append_output_token_ids([7] * 4)
    assert cache.compute(request, 34)
    assert cache.num_blocks(request) == blocks_for(34, 34, 24, 14)


def block_hashes(cache: Cache, request: Request) -> list[object]:
    blocks = cache.manager.get_blocks(request.request_id).blocks
    return [block.block_hash for group in blocks for block in group if block.block_hash is not None]


def test_a_request_that_drops_stays_out_of_the_prefix_cache(cache: Cache):
    drops, stays = cache.request("drops", keep=KEEP), cache.request("stays")
    assert cache.compute(drops, 30)
    assert block_hashes(cache, drops) == []
    assert cache.manager.get_computed_blocks(stays)[1] == 0  # the same tokens

    assert cache.compute(stays, 30)
    assert len(block_hashes(cache, stays)) == 4 * (30 // BLOCK_SIZE)
    assert cache.manager.get_computed_blocks(cache.request("stays too"))[1] == 28

    drops.append_output_token_ids([7] * 5)
    assert cache.compute(drops, 5)
    assert block_hashes(cache, drops) == []
