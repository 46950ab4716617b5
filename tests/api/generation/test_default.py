"""A request that did not ask for compression is never refused for the server's default."""

from __future__ import annotations

import asyncio
import threading

import pytest
from starlette.testclient import TestClient

from duet_server.api.generation import prompt as rendered
from tests.api.generation.test_chat import engine_keys, refusal
from tests.api.stand_in import QUESTION, image_part, stand_in_server, user

LONG = user(image_part(), "why? " * 600)


@pytest.fixture(scope="module")
def defaulting(checkpoint):
    flags = ("--served-model-name", "demo", "--max-num-batched-tokens", "2048", "--duet-default", "aggressive")
    return asyncio.run(stand_in_server(checkpoint, *flags))


@pytest.fixture
def ask(defaulting):
    defaulting.engine.calls.clear()
    client = TestClient(defaulting.app, raise_server_exceptions=False)
    return lambda *messages, path="/v1/chat/completions", **fields: client.post(
        path, json={"model": "demo", "messages": list(messages) or [QUESTION], **fields}
    )


def test_the_default_applies_without_notes(ask):
    usage = ask().json()["usage"]["compression"]
    assert usage["settings"]["preset"] == "aggressive"
    assert "notes" not in usage


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 1}, {"echo": True}], ids=str)
def test_what_compression_does_not_go_with_is_answered_without_it(ask, defaulting, fields):
    field = next(iter(fields))
    usage = ask(**fields).json()["usage"]["compression"]
    assert usage["settings"]["preset"] == "off"
    (note,) = usage["notes"]
    assert note.startswith(f"The server's default compression is not applied: {field} is ")
    assert engine_keys(defaulting.last_call) == {}
    assert [end - start for start, end in defaulting.last_call.spans] == [576]
    assert refusal(ask(**fields, compression="aggressive"))[0] == field


def test_a_prompt_that_stage_2_cannot_prefill_gets_stage_1_alone(ask, defaulting):
    usage = ask(LONG).json()["usage"]["compression"]
    assert (usage["settings"]["dominant"], usage["settings"]["keep"]) == (72, [1.0, 1.0])
    (note,) = usage["notes"]
    assert note.startswith("The server's default compression is applied without stage 2: This model's maximum context")
    assert engine_keys(defaulting.last_call) == {}
    assert [end - start for start, end in defaulting.last_call.spans] == [102]
    assert refusal(ask(LONG, compression="aggressive"))[0] == "messages"


def test_a_batch_falls_back_by_conversation(ask, defaulting):
    answer = ask([QUESTION], [LONG], path="/v1/chat/completions/batch")
    assert answer.status_code == 200, answer.text
    assert [bool(engine_keys(call)) for call in defaulting.engine.calls] == [True, False]
    assert len(answer.json()["usage"]["compression"]["notes"]) == 1


def test_words_before_the_first_picture_do_not_guide_and_usage_says_so(ask):
    (note,) = ask(user("What color is it?", image_part(), "Well?")).json()["usage"]["compression"]["notes"]
    assert note.startswith("Words before the first picture do not guide stage 2")
    for guide in ("last", "all"):
        usage = ask(user("What color is it?", image_part()), compression={"preset": "visionzip", "guide": guide})
        assert "notes" not in usage.json()["usage"]["compression"], "without stage 2 nothing guides"


def test_salient_words_are_found_outside_of_the_event_loop(ask, monkeypatch):
    threads = []

    def spy(*args):
        threads.append(threading.current_thread())
        asyncio.run(asyncio.sleep(0))  # fails in a thread that runs an event loop
        return []

    monkeypatch.setattr(rendered, "salient_rows", spy)
    assert ask().status_code == 200
    assert len(threads) == 1
