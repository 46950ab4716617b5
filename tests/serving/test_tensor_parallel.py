"""Two tensor-parallel ranks keep the same tokens and give the same answers."""

from __future__ import annotations

import pytest

from tests.golden_cases import MODEL_NAMES, checkpoint_path, golden_cases
from tests.serving.running_server import duet_server, picture_and_text, token_ids
from tests.serving.test_golden_http import ask, check_preview


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_golden_tokens_on_two_ranks(tmp_path, model):
    # By default, vLLM needs one memory node per rank.
    bind = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with duet_server(tmp_path / "log", checkpoint_path(model), "--tensor-parallel-size", "2", **bind) as server:
        for case in golden_cases(model):
            assert token_ids(ask(server, case)) == case.tokens, case
        check_preview(server, golden_cases(model)[0])
        plain = picture_and_text(golden_cases(model)[0].picture_path, "What is it?")
        assert token_ids(server.ask(plain * 2, compression={"keep": [0.5, 0.25]}))
