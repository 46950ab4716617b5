"""Runs the engine's tests again, in separate processes, with the model runner that vLLM does not choose here.

With a GPU this is V1. Without one it is V2, which vLLM chooses only if Triton has a backend for the CPU. Triton looks
for backends when it is first imported. ``triton_on_cpu`` is a backend that compiles nothing, so that the runner's
kernels are interpreted. Attention is the CPU's own in this case: FlashAttention's metadata and CUDA graphs are not
covered.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
OTHER_RUNNER = (
    {"DUET_TEST_RUNNER": "v1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    if torch.cuda.is_available()
    else {"DUET_TEST_RUNNER": "v2", "PYTHONPATH": str(HERE / "triton_on_cpu")}
)


def run_under_other_runner(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    env = os.environ | OTHER_RUNNER | environment
    result = subprocess.run(command, env=env, cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stdout


def test_engine_behaves_the_same():
    run_under_other_runner(str(HERE / "test_engine.py"), f"{HERE / 'test_trace.py'}::test_pictures_keep_their_numbers")


def test_backbones_behave_the_same():
    """Of the backbones, one whose tokens keep their positions; in ``test_engine.py`` they close up."""
    run_under_other_runner(str(HERE / "test_backbones.py"), "-k", "qwen3_vl]")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_change_nothing():
    run_under_other_runner(str(HERE / "test_cuda.py"), "-k", "graphs")


def test_golden_cases_by_the_triton_kernels():
    """Only one of the two checkpoints, because without a GPU the kernels are interpreted, which is slow."""
    run_under_other_runner(
        str(HERE / "test_golden_engine.py"), "-k", "each_case and llava_gqa", DUET_TEST_KERNELS="triton"
    )
