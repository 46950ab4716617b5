"""Registers the models that the plugin serves, and sets the vLLM configuration that they need."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from vllm.config.multimodal import VideoDummyOptions
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from duet_server.engine.backbones.table import backbone_of, backbones
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
from duet_server.plan import DecoderShape, ModelShape, SettingsError, check_boundaries, default_boundaries

if TYPE_CHECKING:
    from duet_server.engine.backbones.backbone import Backbone

logger = init_logger(f"vllm.{__name__}")  # vLLM sets up its own loggers only

MOST_DEFAULT_STEP_TOKENS = 16384


def register_models() -> None:
    """Put DUET's classes in front of vLLM's own, for every architecture that has a backbone."""
    for architecture in backbones():
        ModelRegistry.register_model(architecture, f"duet_server.engine.served:{architecture}")
        vllms = MODELS_CONFIG_MAP.get(architecture)
        if vllms is None or not issubclass(vllms, DuetConfig):  # vLLM may load plugins more than once
            MODELS_CONFIG_MAP[architecture] = type(f"Duet{architecture}Config", (DuetConfig,), {"vllms": vllms})


class DuetConfig(VerifyAndUpdateConfig):
    """vLLM calls it while it builds its configuration, before the platform replaces values that are "auto"."""

    vllms: ClassVar[type[VerifyAndUpdateConfig] | None] = None  # vLLM's own, for the same architecture

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        if cls.vllms is not None:
            cls.vllms.verify_and_update_model_config(model_config)

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        if cls.vllms is not None:
            cls.vllms.verify_and_update_config(vllm_config)
        model = vllm_config.model_config
        backbone = backbone_of(model.architecture)
        assert backbone is not None, f"{model.architecture=}"
        backbone = backbone.variant(model.hf_config)
        backbone.check(vllm_config)
        check_options(vllm_config)
        if current_platform.device_type == "cuda":
            logger.warning_once(
                "DUET's engine has not been proven on a GPU yet: `make test-gpu` checks it, `make bench-gpu` times it."
            )
            _choose_attention_backend(vllm_config)
        scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
        duet = _duet_config(vllm_config, backbone)
        if duet.pop("raise_step_tokens", False) and duet["boundaries"]:
            _fit_whole_prompts(vllm_config)
        vllm_config.additional_config = {**vllm_config.additional_config, "duet": duet}
        scheduler.disable_hybrid_kv_cache_manager = False
        if scheduler.scheduler_cls is None:
            scheduler.scheduler_cls = SCHEDULER
        if parallel.worker_cls == "auto":
            parallel.worker_cls = WORKERS[current_platform.device_type]
        _send_every_picture(model.multimodal_config)
        if duet["served"] and "video" not in backbone.modalities:
            _refuse_videos(model.multimodal_config)
        # CUDA graphs for decode steps only: a prefill that drops changes its number of rows between layers.
        compilation = vllm_config.compilation_config
        if compilation.cudagraph_mode is None and vllm_config.optimization_level > OptimizationLevel.O0:
            compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY


def _duet_config(vllm_config: VllmConfig, backbone: "Backbone") -> dict[str, Any]:
    """What the processes must agree on. ``shape`` tells the API what it serves; without compression there is none."""
    duet = dict(vllm_config.additional_config.get("duet", {}))
    model = vllm_config.model_config
    takes_images = model.get_multimodal_config().get_limit_per_prompt("image") > 0
    decoder, first = DecoderShape.of(model.hf_text_config), backbone.first_boundary(model.hf_config)
    boundaries = duet.get("boundaries")
    if boundaries is None:
        boundaries = default_boundaries(decoder.num_layers, first)
    # Without images, vLLM does not even load the tower, and there is nothing to compress.
    boundaries = check_boundaries(boundaries, decoder.num_layers, first) if takes_images else ()
    shape = ModelShape(decoder, backbone.vision_shape(model.hf_config), boundaries)
    duet["boundaries"] = list(boundaries)
    about = {
        "unit": backbone.unit_name,
        "overview": backbone.overview,
        "is_proven": backbone.is_proven,
        "max_positions": backbone.max_positions(model.hf_config),
    }
    duet["served"] = about if takes_images else None
    duet["shape"] = asdict(shape)
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


def _refuse_videos(multimodal_config: Any) -> None:
    """Let vLLM refuse requests with videos, which have no plan yet."""
    limits = multimodal_config.limit_per_prompt
    if "video" in limits and limits["video"].count > 0:
        raise SettingsError(
            "--limit-mm-per-prompt", {"video": limits["video"].count}, "no videos: they are not compressed"
        )
    limits["video"] = VideoDummyOptions(count=0)


def _send_every_picture(multimodal_config: Any) -> None:
    """Cache processed pictures in the API's process only, as vLLM does itself with several API processes.

    By default a second cache in the engine must mirror the first one. If a client disconnects at the wrong moment, the
    two caches differ. Pictures of other requests are then missing in the engine, and these requests get status 500.
    """
    if multimodal_config.mm_processor_cache_type == "lru":
        multimodal_config.mm_processor_cache_type = "processor_only"
