"""/v1/chat/completions/batch: several conversations, one request."""

from __future__ import annotations

import pytest

from tests.api.generation.test_chat import engine_keys, refusal
from tests.api.stand_in import QUESTION, image_part, user

CONVERSATIONS = [
    [QUESTION],
    [QUESTION, {"role": "assistant", "content": "Red."}, user(image_part("blue"), "And this one?")],
    [user("Is it warm?")],
]


@pytest.fixture
def batch(client):
    def send(conversations=CONVERSATIONS, **fields):
        return client.post("/v1/chat/completions/batch", json={"model": "demo", "messages": conversations, **fields})

    return send


def test_every_conversation_is_compressed_as_if_sent_alone(batch, client, server):
    response = batch(compression="aggressive", max_tokens=5)
    assert response.status_code == 200, response.text
    calls, usage = list(server.engine.calls), response.json()["usage"]["compression"]
    server.engine.calls.clear()
    alone = []
    for messages in CONVERSATIONS:
        body = {"model": "demo", "messages": messages, "compression": "aggressive", "max_tokens": 5}
        alone.append(client.post("/v1/chat/completions", json=body).json()["usage"]["compression"])
    assert [engine_keys(call) for call in calls] == [engine_keys(call) for call in server.engine.calls]
    assert [call.params.max_tokens for call in calls] == [5, 5, 5]
    assert usage["visual_tokens"] == {
        "encoder": 1728,
        "stage1": 306,
        "segments": [306, 153, 0],
        "layer_average": 191.25,
    }
    assert usage["kv_cache"]["token_layers"] == sum(one["kv_cache"]["token_layers"] for one in alone)
    assert usage["settings"] == alone[0]["settings"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"compression": "nope"}, "compression"),
        ({"compression": "light", "echo": True}, "echo"),
    ],
)
def test_unsupported_requests_are_refused(batch, server, fields, param):
    assert refusal(batch(**fields))[0] == param
    assert server.engine.calls == []


def test_images_are_sent_again_if_a_later_conversation_is_refused(batch, server):
    first = [user(image_part("#010203"), "What color?")]
    too_long = [user(image_part(), "why? " * 600)]
    assert refusal(batch([first, too_long], compression="aggressive"))[0] == "messages"
    assert batch([first], compression="aggressive").status_code == 200
    assert server.last_call.prompt["mm_kwargs"]["image"][0] is not None
