"""The hooks for vLLM's V1 model runner. They begin every step before its attention metadata is built."""

import functools
from typing import Any

import numpy as np

from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import KVCacheConfig
from duet_server.plan import RequestPlan


class PlansMixin:
    """Hooks for ``GPUModelRunner``: after the KV cache exists, before metadata is built, after a request is removed."""

    @functools.cached_property
    def plans(self: Any) -> RequestPlans:
        return RequestPlans(len(self.model.decoder.segments) - 1)

    def initialize_kv_cache(self: Any, kv_cache_config: KVCacheConfig, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        tables = self.input_batch.block_table.block_tables
        self.model.decoder.step.allocate(
            self.kv_cache_config, [table.block_table.gpu for table in tables], [table.block_size for table in tables]
        )
        self.model.warm_up()

    def _build_attention_metadata(self: Any, **kwargs: Any) -> Any:
        num_reqs = kwargs["num_reqs"]
        num_reqs_padded = kwargs.get("num_reqs_padded") or num_reqs
        num_scheduled = kwargs.get("num_scheduled_tokens")
        if num_scheduled:  # the batch order is final here
            req_ids = self.input_batch.req_ids[:num_reqs]
            plans = [self._plan(req_id) for req_id in req_ids]
            scheduled = np.array([num_scheduled[req_id] for req_id in req_ids])
        else:  # profiling, CUDA graph capture, or an idle data-parallel rank: no requests
            plans, scheduled = [None] * num_reqs, np.full(num_reqs, kwargs["max_query_len"])
        self.model.decoder.step.begin(
            plans,
            self.input_batch.num_computed_tokens_cpu,
            scheduled,
            self.seq_lens[:num_reqs_padded],
            kwargs.get("num_tokens_padded") or kwargs["num_tokens"],
            is_dummy=not num_scheduled,
        )
        return super()._build_attention_metadata(**kwargs)  # type: ignore[misc]

    def _on_request_state_removed(self: Any, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)  # type: ignore[misc]
        self.plans.remove(req_id)

    def _plan(self: Any, req_id: str) -> RequestPlan | None:
        """The request's plan, built on first use from the state that vLLM sent to the worker."""
        if req_id not in self.plans:
            request = self.requests[req_id]
            self.plans.add(req_id, request.num_prompt_tokens, request.mm_features, request.sampling_params)
        return self.plans.get(req_id)
