"""The unstable vLLM internals that the engine uses, pinned to vLLM 0.32.0. The engine's modules import them from here.

There is one exception: a class that one module alone extends is imported in that module (``served.py``,
``processor.py``, ``registration.py``, ``model_state_v2.py`` and the workers).
"""

from vllm import envs
from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.config.vllm import OptimizationLevel
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.multimodal.inputs import PlaceholderRange
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.utils.platform_utils import is_uva_available
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadata,
    CommonAttentionMetadata,
    subclass_attention_backend_with_overrides,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import AttentionSelectorConfig
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry
from vllm.v1.request import Request

__all__ = [
    "AsyncScheduler",
    "Attention",
    "AttentionBackend",
    "AttentionBackendEnum",
    "AttentionCGSupport",
    "AttentionMetadata",
    "AttentionSelectorConfig",
    "CUDAGraphMode",
    "CommonAttentionMetadata",
    "CompilationMode",
    "FullAttentionManager",
    "FullAttentionSpec",
    "KVCacheBlock",
    "KVCacheConfig",
    "KVCacheSpec",
    "KVCacheSpecRegistry",
    "OptimizationLevel",
    "PlaceholderRange",
    "Request",
    "VllmConfig",
    "current_platform",
    "envs",
    "get_forward_context",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_world_size",
    "init_logger",
    "is_uva_available",
    "resolve_obj_by_qualname",
    "set_model_tag",
    "subclass_attention_backend_with_overrides",
    "support_torch_compile",
    "tensor_model_parallel_all_gather",
]
