"""Without compression, the server gives the same tokens and log probabilities as vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from tests.golden_cases import checkpoint_path, golden_cases
from tests.serving.running_server import RunningServer, duet_server, picture_and_text, stock_server, token_ids

MODEL = "llava_gqa"


def answers(server: RunningServer, **fields: Any) -> list[dict[str, Any]]:
    cases = golden_cases(MODEL)
    contents = [picture_and_text(case.picture_path, case.question) for case in cases]
    contents += ["What is the capital of France?", contents[0] + contents[1], contents[2] * 3]
    return [server.ask(content, logprobs=True, top_logprobs=5, **fields) for content in contents]


def completion(server: RunningServer) -> dict[str, Any]:
    body = {"prompt": "What is the capital of France?", "max_tokens": 12, "temperature": 0, "logprobs": 3}
    answer = server.client.post("/v1/completions", json=body).json()
    return {"choices": answer["choices"], "usage": answer["usage"]}


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [top["logprob"] for token in answer["choices"][0]["logprobs"]["content"] for top in token["top_logprobs"]]


def test_off_equals_stock_vllm(tmp_path):
    with stock_server(tmp_path / "stock", checkpoint_path(MODEL)) as server:
        expected, completed = answers(server), completion(server)
        assert server.client.get("/v1/compression").status_code == 404
    with duet_server(tmp_path / "duet", checkpoint_path(MODEL)) as server:
        assert completion(server) == completed
        for served in (answers(server), answers(server, compression="off")):
            assert [token_ids(answer) for answer in served] == [token_ids(answer) for answer in expected]
            for answer, reference in zip(served, expected, strict=True):
                assert logprobs(answer) == pytest.approx(logprobs(reference), abs=1e-5)
                assert answer["usage"]["prompt_tokens"] == reference["usage"]["prompt_tokens"]
