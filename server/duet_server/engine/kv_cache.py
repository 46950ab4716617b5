"""KV-cache groups by segment: the spec that keeps segments apart, and the manager that allocates their blocks."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import (
    FullAttentionManager,
    FullAttentionSpec,
    KVCacheBlock,
    KVCacheConfig,
    KVCacheSpec,
    KVCacheSpecRegistry,
    Request,
)


@dataclass(frozen=True, kw_only=True)
class SegmentSpec(FullAttentionSpec):
    """Full attention over the tokens of one segment. Every layer has one, so that vLLM groups layers by segment."""

    segment_idx: int

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        assert all(spec == specs[0] for spec in specs), "layers of different segments must not share a KV-cache group"
        return copy(specs[0])

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())


class SegmentManager(FullAttentionManager):
    """Allocates blocks for the tokens of a request that this segment holds."""

    def __init__(self, kv_cache_spec: SegmentSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.segment_idx = kv_cache_spec.segment_idx
        self.plans: RequestPlans | None = None  # the scheduler's plans, set after the managers are built

    def _num_held(self, request_id: str, num_tokens: int) -> int:
        return num_tokens - self.plans.dropped(request_id, self.segment_idx) if self.plans else num_tokens

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[KVCacheBlock], *args: Any, **kwargs: Any
    ) -> int:
        held = self._num_held(request_id, num_tokens)
        return super().get_num_blocks_to_allocate(request_id, held, new_computed_blocks, *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        return super().allocate_new_blocks(request_id, self._num_held(request_id, num_tokens), num_tokens_main_model)

    def cache_blocks(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # A block's hash covers tokens of the prompt. After a drop, the block holds other tokens than its hash says.
        if self.plans is None or self.plans.get(request.request_id) is None:
            super().cache_blocks(request, *args, **kwargs)


def register_spec() -> None:
    """Tell vLLM which manager allocates blocks for a ``SegmentSpec``."""
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(SegmentSpec, SegmentManager)


def check_groups(kv_cache_config: KVCacheConfig, num_segments: int) -> None:
    """Assert that no group holds layers of two segments and that every segment has a group."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    assert all(isinstance(spec, SegmentSpec) for spec in specs), f"KV-cache groups without a segment: {specs}"
    segments = {spec.segment_idx for spec in specs}
    assert segments == set(range(num_segments)), f"{segments=} of {num_segments=} have a KV-cache group"


register_spec()
