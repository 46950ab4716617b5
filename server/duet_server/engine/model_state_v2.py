"""The worker's hooks for vLLM's V2 model runner, which gets them from the model (``get_model_state_cls``)."""

from typing import Any

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import CUDAGraphMode, KVCacheConfig


class DuetModelState(DefaultModelState):
    """Keeps the plan of each request, and begins every step before its attention metadata is built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step = self.model.decoder.step
        self.plans = RequestPlans(self.step.num_segments - 1)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        super().add_request(req_index, new_req_data)
        # After a preemption a request is added again, with its generated tokens behind the prompt.
        new = new_req_data
        self.plans.add(new.req_id, new.prompt_len, new.mm_features, new.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self.plans.remove(req_id)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, block_tables: Any) -> None:
        super().initialize_kv_cache(kv_cache_config, block_tables)
        self.step.allocate(kv_cache_config, block_tables.input_block_tables, block_tables.block_sizes)
        self.model.warm_up()

    def prepare_attn(self, input_batch: Any, cudagraph_mode: CUDAGraphMode, *args: Any, **kwargs: Any) -> Any:
        # As in DefaultModelState: only batches of full CUDA graphs are padded.
        is_padded = cudagraph_mode == CUDAGraphMode.FULL
        num_reqs = input_batch.num_reqs_after_padding if is_padded else input_batch.num_reqs
        num_rows = input_batch.num_tokens_after_padding if is_padded else input_batch.num_tokens
        self.step.begin(
            [self.plans.get(req_id) for req_id in input_batch.req_ids],
            input_batch.num_computed_tokens_np,
            input_batch.num_scheduled_tokens,
            input_batch.seq_lens[:num_reqs],
            num_rows,
            is_dummy=input_batch.req_ids[0] not in self.plans,  # vLLM makes up ids for a batch without requests
        )
        return super().prepare_attn(input_batch, cudagraph_mode, *args, **kwargs)
