"""The device for the kernels, and poisoned memory that shows which values they did not write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

GARBAGE = 1009  # larger than every row of a test, but small enough that reading there rarely crashes


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU if there is one, otherwise the CPU, on which Triton interprets its kernels."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory starts as NaN, or as `GARBAGE` if it holds integers."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoning(getattr(owner, name)))


def _poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned_allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(torch.nan)
        return tensor.fill_(True if tensor.dtype == torch.bool else min(GARBAGE, torch.iinfo(tensor.dtype).max))

    return poisoned_allocate
