"""Tests that need a GPU: graphs, compiled segments, half precision, and a host that never waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from duet_kernels import implementation
from duet_server.engine import text_stage
from duet_server.engine.current_step import CurrentStep
from duet_server.engine.model import DuetModel
from tests.engine.in_process import InProcessEngine, in_process_engine
from tests.engine.test_engine import mixed_asks
from tests.engine.test_golden_engine import ask_of
from tests.golden_cases import checkpoint_path, golden_cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

EAGER: dict[str, Any] = {"enforce_eager": True}
GRAPHS: dict[str, Any] = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
}
# Compiled segments and graphs of decoding steps.
COMPILED: dict[str, Any] = {"enforce_eager": False}
# As users run it, with memory profiling. Only one test does this: allocations of other processes break the profiling.
PROFILED: dict[str, Any] = {**COMPILED, "kv_cache_memory_bytes": None, "gpu_memory_utilization": 0.2}
HALF: dict[str, Any] = {"dtype": "bfloat16"}  # FlashAttention has no float32


def serve(**engine_args: Any) -> Any:
    args = {"max_model_len": 512, "max_num_batched_tokens": 2560, "max_num_seqs": 16, "block_size": 16}
    return in_process_engine(checkpoint_path("llava_gqa"), **args, **engine_args)


def all_outputs(engine: InProcessEngine) -> list[Any]:
    """Outputs of all asks in one batch, then of every ask alone."""
    asks = [replace(ask, sampling={"logprobs": -1}) for ask in mixed_asks()]
    return [*engine.generate(*asks), *(engine.generate(ask)[0] for ask in asks)]


def all_tokens(engine: InProcessEngine) -> list[list[int]]:
    return [list(output.token_ids) for output in all_outputs(engine)]


@pytest.fixture(scope="module")
def eager_tokens() -> list[list[int]]:
    with serve(**EAGER) as engine:
        return all_tokens(engine)


@pytest.fixture(scope="module")
def eager_halves() -> list[Any]:
    with serve(**EAGER, **HALF) as engine:
        return all_outputs(engine)


@pytest.mark.parametrize("how", [GRAPHS, COMPILED], ids=["graphs", "compiled"])
def test_graphs_and_compilation_change_no_token(
    how: dict[str, Any], eager_tokens: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    with serve(**how) as engine:
        replays = count_replays(monkeypatch)
        assert all_tokens(engine) == eager_tokens
    assert replays["total"] > 0, "no step was replayed: this test tests nothing"


@pytest.mark.parametrize("how", [GRAPHS, PROFILED], ids=["graphs", "compiled"])
def test_half_precision_under_graphs(how: dict[str, Any], eager_halves: list[Any], monkeypatch: pytest.MonkeyPatch):
    """Compares probabilities up to the first different token: FlashAttention may split its work differently."""
    with serve(**how, **HALF) as engine:
        replays = count_replays(monkeypatch)
        outputs = all_outputs(engine)
    assert replays["total"] > 0, "no step was replayed: this test tests nothing"
    num_compared = 0
    for output, eager in zip(outputs, eager_halves, strict=True):
        for step, (token, eager_token) in enumerate(zip(output.token_ids, eager.token_ids, strict=True)):
            assert distance(output.logprobs[step], eager.logprobs[step]) < 0.5
            num_compared += step > 0  # the first token is the prefill's
            if token != eager_token:
                break
    assert num_compared >= 2 * len(outputs)


def distance(left: Any, right: Any) -> float:
    """Sum of the absolute differences of two distributions: 2 if they do not overlap."""
    probabilities = [torch.tensor([step[token].logprob for token in sorted(step)]).exp() for step in (left, right)]
    return float((probabilities[0] - probabilities[1]).abs().sum())


def test_compiled_segments_are_loaded_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vllm.compilation.counter import compilation_counter

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    tokens = []
    for _ in range(2):
        before = compilation_counter.clone()
        with serve(**COMPILED) as engine:
            tokens.append(all_tokens(engine))
            num_segments = len(engine.model.decoder.segments)
    assert compilation_counter.num_aot_artifacts_loaded - before.num_aot_artifacts_loaded == num_segments
    assert tokens[0] == tokens[1]


def count_replays(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the replays of all CUDA graphs from now on, with either model runner."""
    count, replay = {"total": 0}, torch.cuda.CUDAGraph.replay

    def counting(graph: Any) -> None:
        count["total"] += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counting)
    return count


def test_kernels_change_no_token(eager_tokens: list[list[int]]):
    """Compares with the reference implementation on the same device."""
    with serve(**EAGER) as engine, implementation("reference"):
        assert all_tokens(engine) == eager_tokens


def test_half_precision_keeps_what_single_precision_keeps(monkeypatch: pytest.MonkeyPatch):
    """Nearly the same rows, because bfloat16 also rounds the scores.

    On a CPU, at least 90 % of the rows are the same at the first boundary. The first token's probabilities differ by
    0.15 to 0.34 in total, and by 0.25 if nothing is dropped.
    """
    kept: list[list[int]] = []
    original = text_stage.surviving_rows

    def recorded(*args: Any) -> Any:
        rows, score = original(*args)
        kept.append(rows.tolist())
        return rows, score

    monkeypatch.setattr(text_stage, "surviving_rows", recorded)
    cases = golden_cases("llava_gqa")
    with in_process_engine(checkpoint_path("llava_gqa"), dtype="bfloat16", enable_prefix_caching=False) as engine:
        for case in cases:
            kept.clear()
            (output,) = engine.generate(ask_of(case))
            expected = [set(rows) for rows, share in zip(case.kept_rows_per_stage, case.keep, strict=True) if share < 1]
            assert [len(rows) for rows in kept] == [len(rows) for rows in expected], case
            if kept:
                assert len(set(kept[0]) & expected[0]) >= 0.85 * len(expected[0]), case
            first = torch.tensor([output.logprobs[0][token].logprob for token in range(case.logits.shape[1])])
            golden = torch.tensor(case.logits[0]).log_softmax(dim=-1)
            assert (first.exp() - golden.exp()).abs().sum() < 0.5, case


def test_the_host_never_waits(monkeypatch: pytest.MonkeyPatch):
    """CUDA's debug mode raises if the host waits for the device in DUET's part of a step."""
    for owner, name in (
        (DuetModel, "embed_multimodal"),
        (text_stage.SegmentedDecoder, "__call__"),
        (CurrentStep, "begin"),
    ):
        monkeypatch.setattr(owner, name, without_waiting(getattr(owner, name)))
    with serve(**EAGER) as engine:
        compressed = [ask for ask in mixed_asks() if ask.keep is not None]
        assert len(engine.tokens(*compressed)) == len(compressed)


def without_waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return wrapped
