"""Anthropic's SDK against the running server's /v1/messages."""

from __future__ import annotations

import base64
from typing import Any

import anthropic
import pytest

from benchmarks.robustness.small_server import MODEL
from tests.golden_cases import golden_cases

PICTURE = base64.b64encode(golden_cases("llava_mha")[0].picture_path.read_bytes()).decode()
CONTENT = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
    {"type": "text", "text": "What color is the circle?"},
]
QUESTION: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": CONTENT}]}


def greedy(max_tokens: int = 12, **fields: Any) -> dict[str, Any]:
    return {**QUESTION, "max_tokens": max_tokens, "extra_body": {"temperature": 0, **fields}}


@pytest.fixture
def sdk(server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.base_url, api_key="none", max_retries=0)


def test_messages(sdk, server):
    answer = sdk.messages.create(**greedy(compression="aggressive"))
    usage = answer.usage.model_extra["compression"]
    assert usage["visual_tokens"]["segments"] == [102, 51, 0]
    *_, delta, stop = events = list(sdk.messages.create(**greedy(compression="aggressive"), stream=True))
    assert delta.usage.model_extra["compression"] == usage
    assert (delta.usage.input_tokens, stop.type) == (answer.usage.input_tokens, "message_stop")
    texts = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(texts) == answer.content[0].text
    with sdk.messages.stream(**greedy(compression="aggressive")) as stream:
        assert stream.get_final_text() == answer.content[0].text


def test_counted_tokens_are_those_of_the_answer(sdk):
    """Counting a picture does not put it into the engine's cache: the question after it is answered correctly."""
    settings = {"dominant": 43, "contextual": 5}  # not used by other tests
    counted = sdk.messages.count_tokens(**QUESTION, extra_body={"compression": settings})
    answer = sdk.messages.create(**greedy(compression=settings))
    assert counted.input_tokens == answer.usage.input_tokens


def test_the_servers_default_and_refusals(sdk):
    answer = sdk.messages.create(**greedy())
    assert answer.usage.model_extra["compression"]["settings"]["preset"] == "light"
    with pytest.raises(anthropic.BadRequestError, match="compression is 'strong', expected one of off, light"):
        sdk.messages.create(**greedy(compression="strong"))
