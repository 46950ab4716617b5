"""The compiled operators of vLLM that a LLaVA calls, in plain torch.

vLLM's libraries declare them, so that arguments are checked against the real signatures. None of their kernels runs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_libraries: list[torch.library.Library] = []  # registrations end when these objects are deleted


def dispatch_on_the_cpu(module: ModuleType) -> None:
    """Register vLLM's Python operators for the CPU, because the tensors are there."""
    platform = module.CudaPlatformBase
    platform.dispatch_key = "CPU"
    platform.dist_backend = "gloo"
    platform.is_pin_memory_available = classmethod(lambda cls: False)


def install(module: ModuleType) -> None:
    import vllm.vllm_flash_attn._vllm_fa3_C  # noqa: F401  (declares FlashAttention 3's)

    from pretend_cuda import attention

    register("_C", rms_norm, fused_add_rms_norm, silu_and_mul, gelu_quick, rotary_embedding, weak_ref_tensor)
    register("_C_cache_ops", reshape_and_cache_flash)
    register("_vllm_fa3_C", attention.fwd, attention.get_scheduler_metadata)


def register(namespace: str, *functions: Callable[..., Any]) -> None:
    """Register each function as the CPU implementation of the operator with its name."""
    library = torch.library.Library(namespace, "IMPL")
    _libraries.append(library)
    for function in functions:
        library.impl(function.__name__, function, "CPU")


def rms_norm(result: Tensor, input: Tensor, weight: Tensor | None, epsilon: float) -> None:
    result.copy_(_rms_normed(input, weight, epsilon))


def fused_add_rms_norm(input: Tensor, residual: Tensor, weight: Tensor | None, epsilon: float) -> None:
    """Writes the sum into ``residual`` and the normed values into ``input``."""
    residual.copy_(input.float() + residual.float())
    input.copy_(_rms_normed(residual, weight, epsilon))


def _rms_normed(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)
    return normed if weight is None else normed * weight


def silu_and_mul(result: Tensor, input: Tensor) -> None:
    gate, up = input.chunk(2, dim=-1)
    result.copy_(torch.nn.functional.silu(gate.float()).to(input.dtype) * up)


def gelu_quick(result: Tensor, input: Tensor) -> None:
    result.copy_(input * torch.sigmoid(1.702 * input))


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool, *_: Any
) -> None:
    """Rotates the first part of every head in place; its halves form pairs."""
    assert is_neox, "a LLaVA's decoder rotates halves, not neighbours"
    cos, sin = (part[:, None] for part in cos_sin_cache[positions].float().chunk(2, dim=-1))
    for tensor in (query, key):
        turned = tensor.view(len(positions), -1, head_size)[..., : 2 * cos.shape[-1]]
        first, second = turned.float().chunk(2, dim=-1)
        turned.copy_(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))


def reshape_and_cache_flash(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, *_: Any
) -> None:
    """Rows with a negative slot are padding."""
    rows = (slot_mapping >= 0).nonzero().flatten()
    block_size = key_cache.shape[1]
    block, offset = slot_mapping[rows] // block_size, slot_mapping[rows] % block_size
    for cache, tensor in ((key_cache, key), (value_cache, value)):
        cache[block, offset] = tensor[rows].to(cache.dtype)


def weak_ref_tensor(tensor: Tensor) -> Tensor:
    return tensor
