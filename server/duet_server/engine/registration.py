"""Registers the models that the plugin serves, and sets the vLLM configuration that they need."""

from typing import Any

from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from duet_server.engine.supported import CUDA_BACKENDS, SCHEDULER, WORKERS, check_options, named_backend
from duet_server.engine.vllm_internals import (
    AttentionBackendEnum,
    AttentionSelectorConfig,
    CUDAGraphMode,
    OptimizationLevel,
    VllmConfig,
    current_platform,
    envs,
    init_logger,
)
from duet_server.plan import check_boundaries, default_boundaries

logger = init_logger(f"vllm.{__name__}")  # vLLM sets up its own loggers only

MOST_DEFAULT_STEP_TOKENS = 16384


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
        check_options(vllm_config)
        if current_platform.device_type == "cuda":
            logger.warning_once(
                "DUET's engine has not been proven on a GPU yet: `make test-gpu` checks it, `make bench-gpu` times it."
            )
            _choose_attention_backend(vllm_config)
        scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
        duet = _duet_config(vllm_config)
        if duet.pop("raise_step_tokens", False) and duet["boundaries"]:
            _fit_whole_prompts(vllm_config)
        vllm_config.additional_config = {**vllm_config.additional_config, "duet": duet}
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


def _duet_config(vllm_config: VllmConfig) -> dict[str, Any]:
    """What the processes must agree on. ``served`` tells the API that the engine compresses this model."""
    duet = dict(vllm_config.additional_config.get("duet", {}))
    takes_images = vllm_config.model_config.get_multimodal_config().get_limit_per_prompt("image") > 0
    num_layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    boundaries = duet.get("boundaries")
    if boundaries is None:
        boundaries = default_boundaries(num_layers)
    # Without images, vLLM does not even load the tower, and there is nothing to compress.
    duet["boundaries"] = list(check_boundaries(boundaries, num_layers)) if takes_images else []
    duet["served"] = takes_images
    return duet


def _fit_whole_prompts(vllm_config: VllmConfig) -> None:
    """Raise the default size of a step to the model's context, since a prefill that drops must fit one step."""
    scheduler = vllm_config.scheduler_config
    tokens = min(vllm_config.model_config.max_model_len, MOST_DEFAULT_STEP_TOKENS)
    if scheduler.max_num_scheduled_tokens is not None or tokens <= scheduler.max_num_batched_tokens:
        return
    logger.info(
        "max_num_batched_tokens is %d instead of vLLM's default %d, so that every compressed prompt fits one "
        "step; choose another value with --max-num-batched-tokens.",
        tokens,
        scheduler.max_num_batched_tokens,
    )
    scheduler.max_num_batched_tokens = tokens
    scheduler.max_num_encoder_input_tokens = scheduler.encoder_cache_size = tokens  # vLLM has derived them already


def _choose_attention_backend(vllm_config: VllmConfig) -> None:
    """Name an attention backend unless the user has: vLLM may prefer one that segments do not work with."""
    if named_backend(vllm_config) is not None:
        return
    model, cache = vllm_config.model_config, vllm_config.cache_config
    layer = AttentionSelectorConfig(
        head_size=model.get_head_size(),
        dtype=model.dtype,
        kv_cache_dtype=cache.cache_dtype,
        block_size=cache.block_size if cache.user_specified_block_size else None,
        use_batch_invariant=envs.VLLM_BATCH_INVARIANT,
    )
    reasons = []
    for name in CUDA_BACKENDS:
        backend = AttentionBackendEnum[name]
        try:
            current_platform.get_attn_backend_cls(backend, layer)
        except ValueError as error:
            reasons.append(str(error))
        else:
            vllm_config.attention_config.backend = backend
            return
    raise ValueError(f"No attention backend that DUET works with can run this model here. {' '.join(reasons)}")


def _send_every_picture(multimodal_config: Any) -> None:
    """Cache processed pictures in the API's process only, as vLLM does itself with several API processes.

    By default a second cache in the engine must mirror the first one. If a client disconnects at the wrong moment, the
    two caches differ. Pictures of other requests are then missing in the engine, and these requests get status 500.
    """
    if multimodal_config.mm_processor_cache_type == "lru":
        multimodal_config.mm_processor_cache_type = "processor_only"
