"""What only a GPU shows: graphs, compiled segments, half precision, a host that never waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from duet_kernels import implementation
from duet_server.engine import text_stage
from duet_server.engine.current_step import CurrentStep
from duet_server.engine.models.llava import DuetLlavaForConditionalGeneration
from tests.engine.in_process import InProcessEngine, in_process_engine
from tests.engine.test_engine import mixed_asks
from tests.engine.test_golden_engine import ask_of
from tests.golden_cases import checkpoint_path, golden_cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

EAGER = {"enforce_eager": True}
GRAPHS = {"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
COMPILED = {"enforce_eager": False}  # as users run it: compiled segments, and graphs of decoding steps


def serve(**engine_args: Any) -> Any:
    args = {"max_model_len": 512, "max_num_batched_tokens": 2560, "max_num_seqs": 16, "block_size": 16}
    return in_process_engine(checkpoint_path("llava_gqa"), **args, **engine_args)


def all_tokens(engine: InProcessEngine) -> list[list[int]]:
    """Every ask in a batch, and every one alone."""
    return [*engine.tokens(*mixed_asks()), *(engine.tokens(ask)[0] for ask in mixed_asks())]


@pytest.fixture(scope="module")
def eager_tokens() -> list[list[int]]:
    with serve(**EAGER) as engine:
        return all_tokens(engine)


@pytest.mark.parametrize("how", [GRAPHS, COMPILED], ids=["graphs", "compiled"])
def test_graphs_and_compilation_change_no_token(how: dict[str, Any], eager_tokens: list[list[int]]):
    from vllm.compilation.counter import compilation_counter

    captured, compiled = compilation_counter.num_cudagraph_captured, compilation_counter.num_models_seen
    with serve(**how) as engine:
        replays = count_replays(engine)
        assert all_tokens(engine) == eager_tokens
    assert compilation_counter.num_cudagraph_captured > captured
    assert replays["total"] > 0, "no step was replayed: this test tests nothing"
    if how is COMPILED:
        assert compilation_counter.num_models_seen >= compiled + 3, "every segment is compiled on its own"


def count_replays(engine: InProcessEngine) -> dict[str, int]:
    count = {"total": 0}
    manager = engine.core.model_executor.driver_worker.worker.model_runner.cudagraph_manager
    replay = manager.run_fullgraph

    def counting(desc: Any) -> Any:
        count["total"] += 1
        return replay(desc)

    manager.run_fullgraph = counting
    return count


def test_kernels_change_no_token(eager_tokens: list[list[int]]):
    """By the references, on the same device."""
    with serve(**EAGER) as engine, implementation("reference"):
        assert all_tokens(engine) == eager_tokens


def test_half_precision_keeps_what_single_precision_keeps(monkeypatch: pytest.MonkeyPatch):
    """Nearly: bfloat16 rounds the scores too. On a CPU 90 % or more are the same at the first boundary, and the first
    token's probabilities are 0.15 to 0.34 apart in all, with nothing dropped in between 0.25.
    """
    kept: list[list[int]] = []
    original = text_stage.surviving_rows

    def recorded(*args: Any) -> torch.Tensor:
        rows = original(*args)
        kept.append(rows.tolist())
        return rows

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
    """CUDA's debug mode raises where the host would wait for the device in what the engine adds to a step."""
    for owner, name in (
        (DuetLlavaForConditionalGeneration, "embed_multimodal"),
        (DuetLlavaForConditionalGeneration, "forward"),
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
