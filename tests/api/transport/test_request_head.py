from __future__ import annotations

import re

import pytest

PLAIN = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/invocations", "/v1/messages", "/nowhere"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_an_encoded_body_is_refused_on_every_route_before_it_is_read(path, encoding, client):
    def body():
        raise AssertionError("the body was read")
        yield b""

    answer = client.post(path, content=body(), headers={"Content-Encoding": encoding})
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert error["message"] == f"Content-Encoding is '{encoding}', expected identity."
    assert (error["type"], error["param"], error["code"]) == ("UnsupportedMediaTypeError", "Content-Encoding", 415)
    assert error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_that_is_called_not_encoded_is_read(encoding, client):
    assert client.post("/v1/chat/completions", json=PLAIN, headers={"Content-Encoding": encoding}).status_code == 200


def test_refusals_are_counted(client):
    def count():
        series = r'duet_rejected_requests_total{[^}]*reason="unsupported"} (\S+)'
        return float(re.search(series, client.get("/metrics").text)[1])

    before = count()
    client.post("/v1/chat/completions", json=PLAIN, headers={"Content-Encoding": "gzip"})
    assert count() == before + 1
