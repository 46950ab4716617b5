"""Every segment compiled separately, as vLLM does unless it runs eagerly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.in_process import in_process_engine
from tests.engine.test_backbones import BOUNDARIES, FAMILIES, NUM_TOKENS, SETTINGS, Served, check
from tests.engine.test_golden_engine import ask_of
from tests.golden_cases import checkpoint_path, golden_cases


def test_compiled_segments_give_the_authors_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vllm.compilation.counter import compilation_counter

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    cases = golden_cases("llava_gqa")
    before = compilation_counter.clone()
    with in_process_engine(checkpoint_path("llava_gqa"), enforce_eager=False) as engine:
        outputs = engine.generate(*map(ask_of, cases))
        segments = engine.model.decoder.segments
    assert [list(output.token_ids) for output in outputs] == [case.tokens for case in cases]
    # vLLM also sees its own decoder class, which is never called.
    assert compilation_counter.num_models_seen - before.num_models_seen == len(segments) + 1
    assert compilation_counter.num_aot_compiles - before.num_aot_compiles == len(segments)
    assert len({type(segment).forward.__code__ for segment in segments}) == len(segments)
    assert len({type(segment).forward.__qualname__ for segment in segments}) == len(segments)


def test_compiled_segments_of_qwen3_vl_give_the_eager_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Positions of three axes, rows that change between segments, and DeepStack's rows in the first segment."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    family, checkpoint = FAMILIES["qwen3_vl"], tmp_path / "checkpoint"
    checkpoint.mkdir()
    family.write(checkpoint)
    oracle, num_compared = family.oracle(checkpoint), 0
    engine_args = {"limit_mm_per_prompt": {"image": 4, "video": 0}, "enforce_eager": False}
    with in_process_engine(checkpoint, additional_config={"duet": {"boundaries": BOUNDARIES}}, **engine_args) as engine:
        served = Served(family, engine, oracle)
        asks = [
            served.ask(seed, 1 + seed % 3, sampling={"logprobs": -1}, **settings)
            for seed, settings in enumerate(SETTINGS)
        ]
        for ask, output in zip(asks, engine.generate(*asks), strict=True):
            num_compared += check(served, ask, output)
        for ask in asks[::3]:
            num_compared += check(served, ask, engine.generate(ask)[0])
    assert num_compared > 0.9 * NUM_TOKENS * (len(asks) + len(asks[::3]))
