"""What of vLLM works with segments of different lengths. The start refuses all other options."""

from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

from duet_server.engine.vllm_internals import (
    CompilationMode,
    CUDAGraphMode,
    VllmConfig,
    current_platform,
    envs,
    is_uva_available,
    resolve_obj_by_qualname,
)
from duet_server.plan import SettingsError
from duet_server.plan.errors import shown

SCHEDULER = "duet_server.engine.scheduler.DuetScheduler"
WORKERS = {
    "cpu": "duet_server.engine.worker_cpu.DuetCPUWorker",
    "cuda": "duet_server.engine.worker_cuda.DuetCUDAWorker",
}
# Segments work with the metadata and cache writes of these. Others plan on the host or have another cache layout.
CUDA_BACKENDS = ("FLASH_ATTN", "TRITON_ATTN")  # the preferred one first
BACKENDS = ("CPU_ATTN", *CUDA_BACKENDS)


class Option(NamedTuple):
    """An option as a user writes it, its value, and the values that work. None: the option is not given."""

    name: str
    value: Any
    supported: tuple[Any, ...]


def check_options(vllm_config: VllmConfig) -> None:
    """Raise for options with which the engine would fail, or give wrong tokens.

    Raises:
        ValueError: with one sentence for each of these options.
    """
    options = [*_options(vllm_config), *_execution_options(vllm_config)]
    refused = [_sentence(option) for option in options if option.value not in option.supported]
    refused += [str(error) for error in _foreign_classes(vllm_config)]
    if refused:
        raise ValueError(
            f"{' '.join(refused)} Compression does not work otherwise. To serve vLLM's own model without it, run "
            "vllm serve with VLLM_PLUGINS=''."
        )


def named_backend(vllm_config: VllmConfig) -> Any:
    """The backend that the user named for the decoder's layers; None if vLLM may choose."""
    attention: Any = vllm_config.attention_config
    return attention.backend_per_kind.get("full_attention", attention.backend)


def _options(vllm_config: VllmConfig) -> Iterator[Option]:
    """What changes the requests, or how their tokens and keys are split into steps, ranks and blocks."""
    model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    parallel: Any = vllm_config.parallel_config
    cache: Any = vllm_config.cache_config
    platform = "rocm" if current_platform.is_rocm() else current_platform.device_type
    yield Option("the platform", platform, tuple(WORKERS))
    yield Option("--model-class-overrides", model.model_class_overrides.get(model.architecture), (None,))
    yield Option("--runner", model.runner_type, ("generate",))
    multimodal: Any = model.get_multimodal_config()
    yield Option("--mm-encoder-only", multimodal.mm_encoder_only, (False,))
    # Stage 1 scores all of a picture's tokens at once, and its own counts decide how many there are.
    yield Option("--mm-encoder-tp-mode", multimodal.mm_encoder_tp_mode, ("weights",))
    yield Option("--video-pruning-rate", multimodal.video_pruning_rate or None, (None,))
    # With a cache in shared memory, the API does not see how large a picture is.
    yield Option("--mm-processor-cache-type", multimodal.mm_processor_cache_type, ("lru", "processor_only"))
    yield Option("--enable-lora", vllm_config.lora_config is not None, (False,))
    yield Option("--speculative-config", _name(vllm_config.speculative_config, "method"), (None,))
    yield Option("--diffusion-config", _name(vllm_config.diffusion_config), (None,))
    yield Option("--pipeline-parallel-size", parallel.pipeline_parallel_size, (1,))
    yield Option("--decode-context-parallel-size", parallel.decode_context_parallel_size, (1,))
    yield Option("--prefill-context-parallel-size", parallel.prefill_context_parallel_size, (1,))
    yield Option("--enable-dbo", parallel.enable_dbo, (False,))
    yield Option("--ubatch-size", parallel.ubatch_size, (0, 1))
    yield Option("--kv-transfer-config", _name(vllm_config.kv_transfer_config, "kv_connector"), (None,))
    yield Option("--kv-offloading-size", cache.kv_offloading_size, (None,))
    yield Option("--ec-transfer-config", _name(vllm_config.ec_transfer_config, "ec_connector"), (None,))
    yield Option("--ec-manager-config", vllm_config.ec_manager_config.encoder_cache_manager_cls, (None,))
    yield Option("--disable-hybrid-kv-cache-manager", scheduler.disable_hybrid_kv_cache_manager or False, (False,))
    yield Option("--long-prefill-token-threshold", scheduler.long_prefill_token_threshold, (0,))


def _execution_options(vllm_config: VllmConfig) -> Iterator[Option]:
    """What changes how the layers run: graphs, compilation, kernels, and where the weights lie."""
    compilation: Any = vllm_config.compilation_config
    # Prefills that drop change their number of rows between layers, so only decoding steps may be captured.
    graph_modes = (None, CUDAGraphMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY)
    yield Option("--compilation-config.cudagraph_mode", compilation.cudagraph_mode, graph_modes)
    yield Option("--compilation-config.cudagraph_mm_encoder", compilation.cudagraph_mm_encoder, (False,))
    yield Option("--compilation-config.compile_mm_encoder", compilation.compile_mm_encoder, (False,))
    # Mode 1 compiles the whole model. Mode 2 is what vLLM makes of mode 3 on CPUs; elsewhere nobody has tried it.
    modes = [None, CompilationMode.NONE, CompilationMode.VLLM_COMPILE]
    modes += [CompilationMode.DYNAMO_TRACE_ONCE] if current_platform.is_cpu() else []
    yield Option("--compilation-config.mode", compilation.mode, tuple(modes))
    if current_platform.device_type == "cuda":  # CPUs have one backend, whichever is named
        backend = named_backend(vllm_config)
        yield Option("--attention-backend", backend and backend.name, (None, *CUDA_BACKENDS))

    # Stage 2 reads the weights of a layer before the layer runs, and stage 1 those of the tower's parts. Prefetched
    # weights arrive when their layer runs, and so do offloaded weights without unified addressing (UVA).
    offload = vllm_config.offload_config
    group_size = 0 if offload.offload_backend == "uva" else offload.prefetch.offload_group_size
    yield Option("--offload-group-size", group_size, (0,))
    if offload.uva.cpu_offload_gb and (envs.VLLM_WEIGHT_OFFLOADING_DISABLE_UVA or not is_uva_available()):
        yield Option("--cpu-offload-gb without UVA", offload.uva.cpu_offload_gb, (0,))


def _foreign_classes(vllm_config: VllmConfig) -> Iterator[SettingsError]:
    """Schedulers and workers that know no segments: they would write over the KV cache of other requests."""
    pairs = [
        ("--scheduler-cls", vllm_config.scheduler_config.scheduler_cls, SCHEDULER),
        ("--worker-cls", vllm_config.parallel_config.worker_cls, WORKERS.get(current_platform.device_type)),
    ]
    for option, named, ours in pairs:
        if named in (None, "auto", ours) or ours is None:
            continue
        found = _resolve(named)
        if found is None or not issubclass(found, _resolve(ours)):
            yield SettingsError(option, named, f"a subclass of {ours}")


def _resolve(named: Any) -> Any:
    """The class; None if there is none of this name."""
    try:
        return resolve_obj_by_qualname(named) if isinstance(named, str) else named
    except (ValueError, ImportError, AttributeError):
        return None


def _name(config: Any, attribute: str | None = None) -> str | None:
    """What a configuration object is called in a message; None if it is not given."""
    if config is None:
        return None
    return (attribute and getattr(config, attribute)) or type(config).__name__


def _sentence(option: Option) -> str:
    supported = [shown(_plain(value)) for value in option.supported if value is not None]
    return str(SettingsError(option.name, _plain(option.value), " or ".join(supported) or "nothing"))


def _plain(value: Any) -> Any:
    """A value as a user writes it: numbers of numbered modes, names of other enums."""
    if isinstance(value, Enum):
        return value.value if isinstance(value, int) else value.name
    return value
