"""The engine's tests run directly, and again with another model runner: see test_other_runner.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from duet_kernels import implementation


@pytest.fixture(scope="session", autouse=True)
def kernels() -> Iterator[None]:
    """The kernels' implementation that DUET_TEST_KERNELS names, on any device."""
    name = os.environ.get("DUET_TEST_KERNELS")
    if name is None:
        yield
    else:
        with implementation(name):
            yield
