from __future__ import annotations

import json

import pytest

from duet_server.api.usage import with_usage_chunk

USAGE = {"reduction": 0.5, "settings": {"text": "Größe"}}


def event(**chunk):
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def test_the_usage_chunk_gets_it():
    chunk = {"id": "x", "choices": [], "usage": {"prompt_tokens": 3}, "system_fingerprint": "f"}
    changed = with_usage_chunk(event(**chunk), USAGE)
    assert changed.endswith("\n\n")
    expected = {**chunk, "usage": {"prompt_tokens": 3, "compression": USAGE}}
    assert json.loads(changed.removeprefix("data: ")) == expected


@pytest.mark.parametrize(
    "untouched",
    [
        "data: [DONE]\n\n",
        ": keep-alive\n\n",
        event(id="x", choices=[{"delta": {"content": "a"}}]),
        event(id="x", choices=[{"delta": {"content": "a"}}], usage={"prompt_tokens": 3}),
        event(id="x", choices=[{"delta": {"content": '"choices":[]'}}], usage={"prompt_tokens": 3}),
        event(id="x", choices=[{"delta": {"extra": {"choices": []}}}], usage={"prompt_tokens": 3}),
        event(error={"message": "failed", "choices": []}),
        event(id="x", choices=[], usage=None),
    ],
)
def test_every_other_event_stays_as_it_is(untouched):
    assert with_usage_chunk(untouched, USAGE) == untouched
