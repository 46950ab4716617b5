"""What has to be set before torch and Triton are first imported, and the marks that files get by where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # with more, the workers' threads wait for each other

import torch

if torch.cuda.is_available():
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # vLLM's kernels must not compute float32 as TF32 either
else:
    os.environ["TRITON_INTERPRET"] = "1"

HERE = Path(__file__).parent

# Property tests check values. They have no deadline, so that they do not fail on a busy machine.
settings.register_profile("duet", deadline=None)
settings.load_profile("duet")

# `engine`: every file of these folders, except the files that are named.
ENGINE_FOLDERS = ("engine", "serving")
WITHOUT_ENGINE = (
    "engine/test_attention.py",
    "engine/test_kv_cache.py",
    "engine/test_model.py",
    "engine/test_registration.py",
    "engine/test_request_plans.py",
    "engine/test_scheduler.py",
    "engine/test_stage_seconds.py",
    "engine/test_step_layout.py",
    "engine/test_supported.py",
    "engine/test_text_stage.py",
    "engine/test_worker.py",
)

# `slow`: tests that build a demo model, train, or start several processes that import vLLM or torch.
SLOW = (
    "api/test_metrics.py::test_any_process_shows_what_all_have_counted",
    "pretend_cuda/test_pretend_cuda.py",
    "training/demo/test_build.py",
    "training/test_sharded.py",
    "training/test_train.py::test_training_learns",
)


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        for mark in marks(item.path.relative_to(HERE).as_posix(), getattr(item, "originalname", None) or item.name):
            item.add_marker(mark)


def marks(file: str, test: str = "") -> list[str]:
    """The marks of a test.

    Args:
        file: relative to this folder, with slashes.
        test: the function's name, without parameters.
    """
    engine = file.split("/")[0] in ENGINE_FOLDERS and file not in WITHOUT_ENGINE
    slow = file in SLOW or f"{file}::{test}" in SLOW
    return ["engine"] * engine + ["slow"] * slow
