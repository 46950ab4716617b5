"""Batch files in vLLM's runner, with a stand-in engine."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import asynccontextmanager

import pytest
from vllm.entrypoints.launchers import run_batch as vllm_run_batch
from vllm.entrypoints.launchers.api_server import entry

from duet_server.api.generation.batch_file import run_batch
from tests.api.stand_in import ANSWER, QUESTION, image_part, user

LOCAL = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}


@pytest.fixture
def run(server, tmp_path, monkeypatch):
    @asynccontextmanager
    async def stand_in(*args, **kwargs):
        yield server.engine

    monkeypatch.setattr(entry, "build_async_engine_client", stand_in)
    for name in ("init_app_state", "BatchRequestInput"):  # what run_batch replaces
        monkeypatch.setattr(vllm_run_batch, name, getattr(vllm_run_batch, name))
    server.engine.calls.clear()

    def run(*bodies):
        files = {"input_file": str(tmp_path / "in"), "output_file": str(tmp_path / "out"), "output_tmp_dir": None}
        lines = [
            {"custom_id": str(idx), "method": "POST", "url": "/v1/chat/completions", "body": {"model": "demo", **body}}
            for idx, body in enumerate(bodies)
        ]
        (tmp_path / "in").write_text("\n".join(map(json.dumps, lines)))
        run_batch(Namespace(**{**vars(server.args), **files}))
        answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
        return answers

    return run


def test_each_line_uses_its_own_settings(run):
    question = {"messages": [QUESTION]}
    answers = run(*({**question, "compression": setting} for setting in ("aggressive", "visionzip")), question)
    usages = [answer["response"]["body"]["usage"]["compression"] for answer in answers]
    assert [usage["visual_tokens"]["segments"] for usage in usages] == [[102, 51, 0], [64, 64, 64], [576, 576, 576]]
    assert answers[0]["response"]["body"]["choices"][0]["message"]["content"] == ANSWER


def test_a_bad_line_is_answered_with_its_error_and_the_others_run(run, server):
    bad = [
        ({"compression": "nope"}, "compression"),
        ({"compression": {"reduction": 2}}, "compression.reduction"),
        ({"compression": "light", "messages": [user(image_part(), "why? " * 600)]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [user(LOCAL)]}, "messages[0].content[0].image_url.url"),
        ({"vllm_xargs": {"duet_keep": [1.0, 1.0]}}, "vllm_xargs.duet_keep"),
        ({"n": 1000}, "n"),
        ({"messages": 5}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [user("why? " * 6_000)]}, "messages"),
        ({"max_completion_tokens": 9_999}, "max_completion_tokens"),
        ({"temperature": "warm"}, "temperature"),
    ]
    question = {"messages": [QUESTION]}
    answers = run(*(question | fields for fields, _ in bad), {"messages": [user("hi")]}, question)
    for answer, (_, param) in zip(answers, bad, strict=False):
        assert answer["response"]["status_code"] == 400
        assert answer["error"]["error"]["param"] == param
    assert [answer["response"]["status_code"] for answer in answers[len(bad) :]] == [200, 200]
    assert len(server.engine.calls) == 2


def test_a_schema_reaches_the_engine(run, server):
    schema = {"type": "object", "properties": {"red": {"type": "boolean"}}}
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    run({"messages": [QUESTION], "response_format": response_format, "compression": "light"})
    assert server.last_call.params.structured_outputs.json == schema
