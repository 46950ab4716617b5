from __future__ import annotations

import json

import pytest

from tests.api.generation.test_chat import engine_keys
from tests.api.stand_in import ANSWER, picture_url
from tests.api.test_metrics import scrape

SOURCE = {"type": "base64", "media_type": "image/png", "data": picture_url().partition(",")[2]}
CONTENT = [{"type": "image", "source": SOURCE}, {"type": "text", "text": "What color is the circle?"}]

LONG = {"messages": [{"role": "user", "content": [CONTENT[0], {"type": "text", "text": "why? " * 600}]}]}


@pytest.fixture
def message(client):
    def send(path="/v1/messages", **fields):
        fields = fields if path.endswith("count_tokens") else {"max_tokens": 9, **fields}
        return client.post(path, json={"model": "demo", "messages": [{"role": "user", "content": CONTENT}], **fields})

    return send


@pytest.mark.parametrize("setting", ["aggressive", "off", {"keep": [0.5, 0.25]}], ids=str)
def test_compression_equals_that_of_chat_completions(message, chat, server, setting):
    response = message(compression=setting)
    assert response.status_code == 200, response.text
    by_message = server.last_call
    usage = chat(compression=setting).json()["usage"]
    assert response.json()["usage"]["compression"] == usage["compression"]
    assert response.json()["usage"]["input_tokens"] == usage["prompt_tokens"]
    assert engine_keys(by_message) == engine_keys(server.last_call)
    assert by_message.params.max_tokens == 9


def test_without_images_and_field_the_answer_looks_like_vllms(message):
    assert "compression" not in message(messages=[{"role": "user", "content": "hi"}]).json()["usage"]


def test_a_stream_reports_compression_in_its_last_delta(message):
    response = message(compression="aggressive", stream=True)
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data")]
    assert "".join(event["delta"].get("text", "") for event in events if "delta" in event) == ANSWER
    (reported,) = (event for event in events if "compression" in event.get("usage", {}))
    assert reported["type"] == "message_delta"
    assert reported["usage"] == message(compression="aggressive").json()["usage"]


def test_counting_tokens_does_not_count_as_a_request(message, client):
    before = scrape(client)
    counted = message("/v1/messages/count_tokens", compression="aggressive").json()["input_tokens"]
    assert scrape(client) == before
    assert message(compression="aggressive").json()["usage"]["input_tokens"] == counted
    assert message("/v1/messages/count_tokens", compression="off").json()["input_tokens"] == counted + 576 - 102


@pytest.mark.parametrize(
    ("fields", "says", "reason"),
    [
        ({"compression": "nope"}, "compression is 'nope', expected one of off", "invalid_settings"),
        (LONG | {"compression": "light"}, "This model's maximum context length is 2048 tokens", "too_long"),
    ],
    ids=["setting", "length"],
)
def test_refusals_have_anthropics_shape_and_are_counted(message, client, server, fields, says, reason):
    before = scrape(client)["duet_rejected_requests_total", reason]
    response = message(**fields)
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["message"].startswith(says)
    assert server.engine.calls == []
    assert scrape(client)["duet_rejected_requests_total", reason] == before + 1
