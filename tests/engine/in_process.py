"""A vLLM engine in the test process, so that tests can inspect its scheduler, block tables and model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from duet_server.api.generation.prompt import RenderedPrompt
from duet_server.plan import CompressionSettings, ModelShape, plan_prompt
from duet_server.plan.wire import encode_extra_args

IMAGE_TOKEN_ID = 4
DEFAULT_RUNNER = "v2" if torch.cuda.is_available() else "v1"


@dataclass(frozen=True)
class Ask:
    """One request. ``input_ids`` hold one image token per image."""

    input_ids: Sequence[int]
    images: Sequence[Image.Image] = ()
    stage1: tuple[float, float, int] | None = None
    keep: Sequence[float] | None = None
    guide: str = "all"
    salient: Sequence[int] = ()
    max_tokens: int = 12
    trace_id: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    held: Sequence[Any] | None = None  # instead of keep: rows of each pool, segment after segment


class InProcessEngine:
    """Decodes greedily and ignores EOS. Requests get the ids "0", "1", ... ."""

    def __init__(self, checkpoint: os.PathLike[str], **engine_args: Any) -> None:
        from vllm import LLM

        defaults = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 1024,
            "max_num_batched_tokens": 1024,
            "kv_cache_memory_bytes": 1 << 26,
            "limit_mm_per_prompt": {"image": 4},
            "max_logprobs": -1,
        }
        self.llm = LLM(str(checkpoint), **{**defaults, **engine_args})
        self.engine = self.llm.llm_engine
        runner = "v2" if self.core.vllm_config.use_v2_model_runner else "v1"
        assert runner == os.environ.get("DUET_TEST_RUNNER", DEFAULT_RUNNER)
        self._num_requests = 0

    @property
    def core(self) -> Any:
        return self.engine.engine_core.engine_core

    @property
    def scheduler(self) -> Any:
        return self.core.scheduler

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_dict(self.core.vllm_config.additional_config["duet"]["shape"])

    @property
    def model(self) -> Any:
        return self.core.model_executor.driver_worker.worker.model_runner.model

    @property
    def num_free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(self, ask: Ask) -> str:
        from vllm import SamplingParams

        prompt: dict[str, Any] = {"prompt_token_ids": list(ask.input_ids)}
        kwargs: dict[str, Any] = {"duet_stage1": list(ask.stage1)} if ask.images and ask.stage1 else {}
        kwargs |= {} if ask.trace_id is None else {"duet_trace": ask.trace_id}
        if ask.images:
            prompt |= {"multi_modal_data": {"image": list(ask.images)}, "mm_processor_kwargs": kwargs}
        engine_input = self.llm._preprocess_cmpl_one(prompt)
        extra_args: dict[str, Any] = {} if ask.trace_id is None else {"duet_trace": ask.trace_id}
        if ask.keep is not None:
            rendered = RenderedPrompt.from_engine_input(engine_input)
            settings = CompressionSettings(None, 0, None, tuple(ask.keep), ask.guide, "custom")
            plan = plan_prompt(settings, self.shape, len(rendered.token_ids), rendered.visual, rendered.items)
            extra_args |= encode_extra_args(plan, ask.guide, ask.salient)
        if ask.held is not None:
            extra_args["duet_held"] = list(ask.held)
        params = SamplingParams(
            temperature=0, max_tokens=ask.max_tokens, ignore_eos=True, extra_args=extra_args or None, **ask.sampling
        )
        request_id = str(self._num_requests)
        self._num_requests += 1
        self.engine.add_request(request_id, engine_input, params)
        return request_id

    def run(self) -> dict[str, Any]:
        """Step until no request is left. Returns the finished outputs by request id."""
        finished = {}
        while self.engine.has_unfinished_requests():
            finished |= {output.request_id: output for output in self.engine.step() if output.finished}
        return finished

    def generate(self, *asks: Ask) -> list[Any]:
        """The outputs of all asks in one batch, in order."""
        ids = [self.add(ask) for ask in asks]
        finished = self.run()
        return [finished[request_id].outputs[0] for request_id in ids]

    def tokens(self, *asks: Ask) -> list[list[int]]:
        return [list(output.token_ids) for output in self.generate(*asks)]

    def take_trace(self, trace_id: int) -> dict[str, dict[int, Any]] | None:
        """Take the trace in the same way as the API."""
        return self.core.collective_rpc("take_trace", args=(trace_id,))[0]

    def internal_request(self, request_id: str) -> Any:
        """The scheduler's request. vLLM appends a suffix to the given id."""
        return next(r for r in self.scheduler.requests.values() if r.request_id.startswith(f"{request_id}-"))

    def block_counts(self, request_id: str) -> dict[int, set[int]]:
        """Blocks that the request holds, by segment: one number for each KV-cache group of the segment."""
        internal_id = self.internal_request(request_id).request_id
        counts: dict[int, set[int]] = {}
        for manager in self.scheduler.kv_cache_manager.coordinator.single_type_managers:
            counts.setdefault(manager.segment_idx, set()).add(len(manager.req_to_blocks[internal_id]))
        return counts

    def shutdown(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self.engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


@contextmanager
def in_process_engine(checkpoint: os.PathLike[str], **engine_args: Any) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine = InProcessEngine(checkpoint, **engine_args)
    try:
        yield engine
    finally:
        engine.shutdown()
        del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]


def noise_picture(seed: int) -> Image.Image:
    """A picture of 168 x 168 pixels, which the tiny checkpoints' processor does not resize."""
    pixels = np.random.default_rng(seed).integers(0, 256, (168, 168, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def text_ids(seed: int, length: int) -> list[int]:
    """Byte tokens of random letters."""
    return [int(token) for token in np.random.default_rng(seed).integers(40, 200, length)]
