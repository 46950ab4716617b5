from __future__ import annotations

import pytest

from tests.api.generation.test_chat import refusal
from tests.api.stand_in import QUESTION


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/invocations", {"prompt": "a"}),
        ("/tokenize", {"messages": [QUESTION]}),
    ],
)
def test_routes_without_compression_say_so(client, server, path, body):
    param, message = refusal(client.post(path, json={"model": "demo", **body, "compression": {"reduction": 0.5}}))
    assert param == "compression"
    assert f"{path} does not compress" in message
    assert server.engine.calls == []
    for nothing in (None, "off"):
        assert client.post(path, json={"model": "demo", **body, "compression": nothing}).status_code == 200


def test_completions_are_vllms(client, server):
    assert "compression" not in client.post("/v1/completions", json={"model": "demo", "prompt": "a"}).json()["usage"]
    assert server.last_call.params.extra_args is None
