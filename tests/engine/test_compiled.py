"""Every segment compiled separately, as vLLM does unless it runs eagerly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.in_process import in_process_engine
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
