"""The engine's tests run as they are, and once more under another model runner: see test_other_runner.py."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from duet_kernels import implementation


@pytest.fixture(scope="session", autouse=True)
def kernels() -> Iterator[None]:
    """The implementation that DUET_TEST_KERNELS names, whatever the device."""
    name = os.environ.get("DUET_TEST_KERNELS")
    if name is None:
        yield
    else:
        with implementation(name):
            yield
