"""An engine whose decoder is one segment, so that only stage 1 can run."""

from __future__ import annotations

from dataclasses import replace

from tests.engine.in_process import in_process_engine
from tests.engine.test_golden_engine import ask_of
from tests.golden_cases import checkpoint_path, golden_cases


def test_stage1_needs_no_boundaries():
    (case,) = [case for case in golden_cases("llava_gqa") if not any(share < 1 for share in case.keep)]
    with in_process_engine(checkpoint_path("llava_gqa"), additional_config={"duet": {"boundaries": []}}) as engine:
        (output,) = engine.generate(replace(ask_of(case), keep=None))
    assert list(output.token_ids) == case.tokens
