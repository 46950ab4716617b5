"""Real configurations of vLLM, built without an engine: what the start refuses, and in which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from vllm import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_worker import CPUWorker

from duet_server.engine import supported
from duet_server.engine.scheduler import DuetScheduler
from duet_server.engine.worker_cpu import DuetCPUWorker
from tests import golden_qwen
from tests.checkpoints.qwen_vl import write_qwen_vl
from tests.golden_cases import checkpoint_path

on_cpu = pytest.mark.skipif(not current_platform.is_cpu(), reason="the classes and defaults are those of a CPU")
pytestmark = on_cpu


def create_config(checkpoint: Path | None = None, **engine_args: Any) -> Any:
    return EngineArgs(str(checkpoint or checkpoint_path("llava_gqa")), **engine_args).create_engine_config()


class OwnScheduler(DuetScheduler):
    pass


class OwnWorker(DuetCPUWorker):
    pass


class StockWorker(CPUWorker):
    pass


STOCK_SCHEDULER = "--scheduler-cls is 'vllm.v1.core.sched.scheduler.Scheduler',"
A_SCHEDULER_OF_OURS = "expected a subclass of duet_server.engine.scheduler.DuetScheduler."
A_WORKER_OF_OURS = "expected a subclass of duet_server.engine.worker_cpu.DuetCPUWorker."

REFUSED = [
    ({"offload_group_size": 4}, "--offload-group-size is 4, expected 0."),
    ({"offload_group_size": 2, "offload_backend": "prefetch"}, "--offload-group-size is 2, expected 0."),
    ({"compilation_config": {"mode": 1}}, "--compilation-config.mode is 1, expected 0 or 3 or 2."),
    (
        {"compilation_config": {"cudagraph_mode": "FULL"}},
        "--compilation-config.cudagraph_mode is 'FULL', expected 'NONE' or 'FULL_DECODE_ONLY'.",
    ),
    (
        {"compilation_config": {"cudagraph_mm_encoder": True}},
        "--compilation-config.cudagraph_mm_encoder is true, expected false.",
    ),
    ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, f"{STOCK_SCHEDULER} {A_SCHEDULER_OF_OURS}"),
    ({"scheduler_cls": Scheduler}, A_SCHEDULER_OF_OURS),
    ({"scheduler_cls": "Nameless"}, f"--scheduler-cls is 'Nameless', {A_SCHEDULER_OF_OURS}"),
    ({"worker_cls": "not.there.Worker"}, f"--worker-cls is 'not.there.Worker', {A_WORKER_OF_OURS}"),
    ({"worker_cls": f"{__name__}.StockWorker"}, f"--worker-cls is '{__name__}.StockWorker', {A_WORKER_OF_OURS}"),
    ({"ubatch_size": 2}, "--ubatch-size is 2, expected 0 or 1."),
    ({"enable_dbo": True}, "--enable-dbo is true, expected false."),
    ({"enable_lora": True}, "--enable-lora is true, expected false."),
    (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
        "--speculative-config is 'ngram', expected nothing.",
    ),
    ({"diffusion_config": {"canvas_length": 8}}, "--diffusion-config is 'DiffusionConfig', expected nothing."),
    ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size is 2, expected 1."),
    (
        {"decode_context_parallel_size": 2, "tensor_parallel_size": 2},
        "--decode-context-parallel-size is 2, expected 1.",
    ),
    ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size is 2, expected 1."),
    (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        "--kv-transfer-config is 'ExampleConnector', expected nothing.",
    ),
    (
        {"ec_transfer_config": {"ec_connector": "ExampleConnector", "ec_role": "ec_both"}},
        "--ec-transfer-config is 'ExampleConnector', expected nothing.",
    ),
    (
        {"ec_manager_config": {"encoder_cache_manager_cls": "a.b.C"}},
        "--ec-manager-config is 'a.b.C', expected nothing.",
    ),
    ({"mm_encoder_only": True}, "--mm-encoder-only is true, expected false."),
    ({"video_pruning_rate": 0.5}, "--video-pruning-rate is 0.5, expected nothing."),
    (
        {"mm_processor_cache_type": "shm"},
        "--mm-processor-cache-type is 'shm', expected 'lru' or 'processor_only'.",
    ),
    (
        {"compilation_config": {"compile_mm_encoder": True}},
        "--compilation-config.compile_mm_encoder is true, expected false.",
    ),
    ({"kv_offloading_size": 1.0}, "--kv-offloading-size is 1.0, expected nothing."),
    ({"disable_hybrid_kv_cache_manager": True}, "--disable-hybrid-kv-cache-manager is true, expected false."),
    ({"long_prefill_token_threshold": 64}, "--long-prefill-token-threshold is 64, expected 0."),
    ({"runner": "pooling"}, "--runner is 'pooling', expected 'generate'."),
]


@pytest.mark.parametrize(("engine_args", "sentence"), REFUSED, ids=lambda value: str(value)[:50])
def test_the_start_refuses(engine_args, sentence):
    with pytest.raises(ValueError, match=f"{re.escape(sentence)}.* VLLM_PLUGINS=''"):
        create_config(**engine_args)


@pytest.mark.parametrize(
    ("engine_args", "sentence"),
    [
        ({"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode is 'data', expected 'weights'."),
        ({"limit_mm_per_prompt": {"video": 2}}, "--limit-mm-per-prompt is {'video': 2}, expected no videos:"),
        ({"additional_config": {"duet": {"boundaries": [0, 4]}}}, "boundaries is [0, 4], expected ascending"),
    ],
    ids=str,
)
def test_the_start_refuses_of_qwen(engine_args, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        create_config(golden_qwen.CHECKPOINT, **engine_args)


def test_videos_are_refused_by_default():
    assert create_config(golden_qwen.CHECKPOINT).model_config.multimodal_config.get_limit_per_prompt("video") == 0


def test_no_boundary_before_the_last_deepstack_level(tmp_path):
    checkpoint = write_qwen_vl(tmp_path, "qwen3_vl")
    assert create_config(checkpoint).additional_config["duet"]["boundaries"] == [4, 6]
    with pytest.raises(
        ValueError, match=re.escape("boundaries is [2, 6], expected ascending decoder layer indices from 3")
    ):
        create_config(checkpoint, additional_config={"duet": {"boundaries": [2, 6]}})


def test_every_wrong_option_is_named():
    with pytest.raises(ValueError, match=r"--ubatch-size is 2, expected 0 or 1\. --offload-group-size is 4,"):
        create_config(ubatch_size=2, offload_group_size=4)


@pytest.mark.parametrize(
    "engine_args",
    [
        {"scheduler_cls": OwnScheduler},
        {"scheduler_cls": f"{__name__}.OwnScheduler"},
        {"worker_cls": f"{__name__}.OwnWorker"},
        {"cpu_offload_gb": 1.0},
        {"offload_group_size": 4, "offload_backend": "uva"},  # vLLM ignores the size then
        {"compilation_config": {"mode": 0}},
        {"compilation_config": {"mode": 2}},
        {"compilation_config": {"mode": 3}},
        {"optimization_level": 0},
        {"enforce_eager": True},
        {"async_scheduling": False},
        {"attention_backend": "FLASHINFER"},  # a CPU has one backend, and vLLM ignores the name
    ],
    ids=str,
)
def test_the_start_accepts(engine_args):
    assert create_config(**engine_args).additional_config["duet"]["served"]


def test_offloading_needs_unified_addressing(monkeypatch):
    monkeypatch.setattr(supported, "is_uva_available", lambda: False)
    create_config()
    with pytest.raises(ValueError, match=r"--cpu-offload-gb without UVA is 1\.0, expected 0\."):
        create_config(cpu_offload_gb=1.0)
