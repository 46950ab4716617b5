"""The answers of NVIDIA's management library on a machine with one H100."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

from pretend_cuda.device import H100


def install(module: ModuleType) -> None:
    """Put the answers that vLLM's platform needs into vLLM's copy of pynvml."""
    memory = SimpleNamespace(total=H100.total_memory, free=H100.total_memory, used=0)
    for name, answer in {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetName": H100.name,
        "nvmlDeviceGetUUID": H100.uuid,
        "nvmlDeviceGetCudaComputeCapability": (H100.major, H100.minor),
        "nvmlDeviceGetMemoryInfo": memory,
    }.items():
        setattr(module, name, lambda *_, _answer=answer: _answer)
