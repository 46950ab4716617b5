"""Registers the models that the plugin serves, and sets the vLLM configuration that they need."""

from typing import Any

from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from duet_server.engine.vllm_internals import (
    CUDAGraphMode,
    OptimizationLevel,
    VllmConfig,
    current_platform,
    init_logger,
)
from duet_server.plan import check_boundaries, default_boundaries

logger = init_logger(__name__)

SCHEDULER = "duet_server.engine.scheduler.DuetScheduler"
WORKERS = {
    "cpu": "duet_server.engine.worker_cpu.DuetCPUWorker",
    "cuda": "duet_server.engine.worker_cuda.DuetCUDAWorker",
}
GRAPH_MODES = (None, CUDAGraphMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY)


def register_models() -> None:
    ModelRegistry.register_model(
        "LlavaForConditionalGeneration", "duet_server.engine.models.llava:DuetLlavaForConditionalGeneration"
    )
    MODELS_CONFIG_MAP["LlavaForConditionalGeneration"] = DuetLlavaConfig


class DuetLlavaConfig(VerifyAndUpdateConfig):
    """vLLM calls it while it builds its configuration, before the platform replaces values that are "auto"."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        from duet_server.engine.models.llava import check_config

        check_config(vllm_config)
        _refuse_unsupported(vllm_config)
        if current_platform.device_type == "cuda":
            logger.warning_once(
                "DUET's engine has not been proven on a GPU yet: `make test-gpu` checks it, `make bench-gpu` times it."
            )
        _set_boundaries(vllm_config)
        scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
        scheduler.disable_hybrid_kv_cache_manager = False
        if scheduler.scheduler_cls is None:
            scheduler.scheduler_cls = SCHEDULER
        if parallel.worker_cls == "auto":
            parallel.worker_cls = WORKERS[current_platform.device_type]
        _send_every_picture(vllm_config.model_config.multimodal_config)
        # CUDA graphs for decode steps only: a prefill that drops changes its number of rows between layers.
        compilation = vllm_config.compilation_config
        if compilation.cudagraph_mode is None and vllm_config.optimization_level > OptimizationLevel.O0:
            compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY


def _set_boundaries(vllm_config: VllmConfig) -> None:
    num_layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    duet = dict(vllm_config.additional_config.get("duet", {}))
    boundaries = duet.get("boundaries")
    duet["served"] = True  # tells the API that the engine compresses this model
    duet["boundaries"] = list(
        default_boundaries(num_layers) if boundaries is None else check_boundaries(boundaries, num_layers)
    )
    vllm_config.additional_config = {**vllm_config.additional_config, "duet": duet}


def _send_every_picture(multimodal_config: Any) -> None:
    """Cache processed pictures in the API's process only, as vLLM does itself with several API processes.

    By default a second cache in the engine must mirror the first one. If a client disconnects at the wrong moment, the
    two caches differ. Pictures of other requests are then missing in the engine, and these requests get status 500.
    """
    if multimodal_config.mm_processor_cache_type == "lru":
        multimodal_config.mm_processor_cache_type = "processor_only"


def _refuse_unsupported(vllm_config: VllmConfig) -> None:
    """Raise for vLLM features that would give wrong tokens with segments of different lengths."""
    parallel: Any = vllm_config.parallel_config
    cache: Any = vllm_config.cache_config
    graphs = vllm_config.compilation_config.cudagraph_mode
    in_use = {
        f"the platform {current_platform.device_type}": current_platform.device_type not in WORKERS,
        "speculative decoding": vllm_config.speculative_config is not None,
        "KV connectors": vllm_config.kv_transfer_config is not None or cache.kv_offloading_size is not None,
        "EC connectors": vllm_config.ec_transfer_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "dual-batch overlap": parallel.enable_dbo,
        "LoRA": vllm_config.lora_config is not None,
        f"cudagraph_mode {graphs.name if graphs else None}": graphs not in GRAPH_MODES,
        "CUDA graphs of the vision tower": vllm_config.compilation_config.cudagraph_mm_encoder,
        "long_prefill_token_threshold": vllm_config.scheduler_config.long_prefill_token_threshold > 0,
    }
    refused = [name for name, used in in_use.items() if used]
    if refused:
        raise ValueError(
            f"duet-server does not support {', '.join(refused)} yet. Start without this, or set VLLM_PLUGINS='' to "
            "serve vLLM's own model without compression."
        )
