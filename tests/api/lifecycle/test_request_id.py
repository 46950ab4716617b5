from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from duet_server.api.lifecycle.request_id import RequestIdMiddleware
from duet_server.logs import RequestIdFilter
from tests.api.stand_in import QUESTION

HOSTILE = [
    b"",
    b"a b",
    b"x" * 129,
    b"x" * 10_000,
    b"a\nINFO: forged",
    b"a\r\nx-forged: 1",
    "é".encode(),
    b"\xff",
    b'"',
    b"a/b",
]


@pytest.mark.parametrize("given", ["1", "req_0123.ABC:x-y", "x" * 128])
@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_id_is_in_header_and_body(client, given, stream):
    body = {"model": "demo", "messages": [QUESTION], "stream": stream}
    response = client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": given})
    assert response.headers.get_list("x-request-id") == [given]
    assert f'"id":"chatcmpl-{given}"' in response.text


@pytest.mark.parametrize("given", HOSTILE, ids=repr)
def test_an_unsafe_id_is_replaced_by_a_new_one(client, chat, given):
    response = client.post(
        "/v1/chat/completions", json={"model": "demo", "messages": [QUESTION]}, headers={b"X-Request-Id": given}
    )
    made = response.headers["x-request-id"]
    assert len(made) == 32
    assert made.isalnum()
    assert response.json()["id"] == f"chatcmpl-{made}"


def test_each_request_gets_its_own_id(client):
    ids = {client.get("/v1/models").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/chat/completions", 400), ("/v1/compression/plan", 400), ("/v1/nothing", 404)]
)
def test_errors_carry_the_request_id(client, path, status):
    response = client.post(path, json={"messages": 7}, headers={"X-Request-Id": "mine"})
    assert response.status_code == status
    assert response.headers["x-request-id"] == "mine"
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.json()["error"]["request_id"] == "mine"


@pytest.fixture
def app():
    app = FastAPI()
    app.state.args = type("Args", (), {"log_error_stack": False})
    app.add_middleware(RequestIdMiddleware)
    return app


def test_unhandled_exceptions_carry_the_request_id(app):
    @app.get("/")
    def fail():
        raise KeyError("x")

    response = TestClient(app, raise_server_exceptions=False).get("/", headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"] == "mine"


@pytest.mark.parametrize("content", [{"detail": "no"}, {"error": "no"}, ["error"]], ids=repr)
def test_errors_of_another_shape_are_unchanged(app, content):
    app.get("/")(lambda: JSONResponse(content, 418))
    assert TestClient(app).get("/").json() == content


def test_log_records_of_a_request_carry_its_id(app, caplog):
    caplog.set_level(logging.WARNING)
    caplog.handler.addFilter(RequestIdFilter())

    @app.get("/")
    async def log():
        logging.getLogger("any").warning("here")

    TestClient(app).get("/", headers={"X-Request-Id": "mine"})
    logging.getLogger("any").warning("outside")
    assert [(record.message, record.request_id) for record in caplog.records if record.name == "any"] == [
        ("here", "mine"),
        ("outside", "-"),
    ]
