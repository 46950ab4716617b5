from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from tests.api.stand_in import stand_in_server

HEADERS = {"Content-Type": "application/json"}
BODY = b'{"model": "demo", "prompt": "Hello", "max_tokens": 2}'
LIMIT = 1000


@pytest.fixture(scope="module")
def small(checkpoint):
    server = asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", "--duet-max-body", str(LIMIT)))
    return TestClient(server.app, raise_server_exceptions=False)


def padded(length):
    return BODY + b" " * (length - len(BODY))


def in_pieces(body):
    """The body in pieces, which are sent without Content-Length."""
    yield from (body[start : start + 100] for start in range(0, len(body), 100))


@pytest.mark.parametrize("send", [lambda body: body, in_pieces])
@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/tokenize", "/v1/chat/completions"])
def test_larger_bodies_are_refused_with_or_without_content_length(send, path, small):
    answer = small.post(path, content=send(padded(LIMIT + 1)), headers=HEADERS)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (413, 413, "body")
    assert error["message"] == "body is '1001 bytes', expected at most 1000 bytes."


@pytest.mark.parametrize("send", [lambda body: body, in_pieces])
def test_a_body_of_exactly_the_limit_is_read(send, small):
    assert small.post("/v1/completions", content=send(padded(LIMIT)), headers=HEADERS).status_code == 200


def test_reading_stops_once_the_limit_is_exceeded(small):
    taken = []

    def endless():
        while True:
            taken.append(1)
            assert len(taken) < 100, "still reading"
            yield b" " * 100

    sent = []

    async def receive():
        return {"type": "http.request", "body": next(pieces), "more_body": True}

    async def send(message):
        sent.append(message)

    pieces = endless()
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    asyncio.run(small.app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert len(taken) == 11


def test_a_refused_body_is_counted(small):
    series = 'duet_rejected_requests_total{model_name="demo",reason="limit"} '
    before = float(small.get("/metrics").text.split(series)[1].split()[0])
    small.post("/v1/completions", content=padded(LIMIT + 1), headers=HEADERS)
    assert float(small.get("/metrics").text.split(series)[1].split()[0]) == before + 1


def test_if_switched_off_any_body_is_read(checkpoint):
    server = asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", "--duet-max-body", "off"))
    body = padded(65 << 20)
    assert TestClient(server.app).post("/v1/completions", content=body, headers=HEADERS).status_code == 200
