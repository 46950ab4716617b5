"""Chooses the implementation of an operation, and moves host values to the device without making the host wait."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

Implementation = Literal["reference", "triton"]

_override: Implementation | None = None


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether Triton runs: only on CUDA devices, unless ``implementation`` overrides it."""
    return tensor.is_cuda if _override is None else _override == "triton"


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Run every operation of this process with one implementation on every device, for tests and benchmarks."""
    global _override
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def to_device(values: Sequence[int] | np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Copy integers to a tensor on the device, through pinned memory, so that the host does not wait."""
    host = torch.as_tensor(np.asarray(values), dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def to_device_at_once(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Move integer arrays of any shapes to the device in one copy, as int64 tensors of the same shapes."""
    flat = to_device(np.concatenate([array.ravel() for array in arrays]), device, torch.int64)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
