from __future__ import annotations

import asyncio
import json

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.testclient import TestClient

from duet_server.api.protection.plain_errors import PlainErrors
from tests.api.stand_in import stand_in_server

PATHS = [
    "/work/main/.venv/lib/python3.11/site-packages/vllm/x.py",
    "/root/.cache/models/weights.safetensors",
    "/data/models",
    "'/srv/x/y'",
]
INTERNAL = {"message": "connect to 10.0.0.1:5555 failed", "type": "InternalServerError", "param": None, "code": 500}


def answering(status, content):
    """A client of an app that gives this answer."""
    app = FastAPI()

    @app.get("/")
    async def answer():
        return JSONResponse(content, status)

    return TestClient(PlainErrors(app), raise_server_exceptions=False)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("status", [400, 404, 422, 501, 503])
def test_paths_are_removed(path, status):
    error = {"message": f"Cannot read {path} here", "type": "BadRequestError", "param": None, "code": status}
    answer = answering(status, {"error": error}).get("/")
    assert answer.status_code == status
    assert "<path>" in answer.json()["error"]["message"]
    assert path.strip("'")[:6] not in answer.text
    assert answer.json()["error"] == error | {"message": answer.json()["error"]["message"]}


@pytest.mark.parametrize(
    "message",
    [
        "image_url is 'https://host.test/a/b', expected a URL that can be fetched.",
        "expected none: /v1/completions does not compress",
        "n is 1/2, expected 3/4/5",
        "Only 'application/json' is allowed",
    ],
)
def test_slashes_outside_of_paths_are_kept(message):
    assert answering(400, {"error": {"message": message}}).get("/").json()["error"]["message"] == message


def test_tracebacks_and_addresses_of_objects_are_removed():
    trace = 'Failed:\n  File "/a/b.py", line 3, in f\n    g()\nValueError: <io.BytesIO object at 0x7f00>'
    message = answering(400, {"error": {"message": trace}}).get("/").json()["error"]["message"]
    assert "0x7f" not in message
    assert "b.py" not in message


@pytest.mark.parametrize("content", [{"error": INTERNAL}, {"detail": "secret"}, []])
def test_a_500_says_only_where_to_look(content):
    answer = answering(500, content).get("/", headers={"X-Request-Id": "abc"})
    message = "The server failed on this request. Its log has the reason under abc."
    assert answer.json() == {"error": INTERNAL | {"message": message}}


def test_starlettes_own_errors_get_openais_shape(client):
    answer = client.get("/nothing")
    assert answer.json()["error"] | {"request_id": None} == {
        "message": "Not Found",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
        "request_id": None,
    }
    assert client.delete("/v1/models").json()["error"]["type"] == "MethodNotAllowedError"
    assert int(answer.headers["Content-Length"]) == len(answer.content)


def test_answers_that_are_no_json_errors_are_unchanged():
    app = FastAPI()

    @app.get("/stream")
    async def stream():
        return StreamingResponse(iter(["data: /a/b/c\n\n"] * 3), 400, media_type="text/event-stream")

    @app.get("/fine")
    async def fine():
        return {"detail": "/a/b/c"}

    @app.get("/broken")
    async def broken():
        return StreamingResponse(iter(["{", '"error"']), 400, media_type="application/json")

    client = TestClient(PlainErrors(app))
    assert client.get("/stream").text == "data: /a/b/c\n\n" * 3
    assert client.get("/fine").json() == {"detail": "/a/b/c"}
    assert client.get("/broken").text == '{"error"'


def test_errors_of_other_shapes_keep_their_shape():
    health = {"status": "unavailable", "reason": "draining"}
    assert answering(503, health).get("/").json() == health
    anthropic = {"type": "error", "error": {"type": "invalid_request_error", "message": "at /data/models/x"}}
    answer = answering(400, anthropic).get("/").json()
    assert answer == {"type": "error", "error": {"type": "invalid_request_error", "message": "at <path>"}}
    answer = answering(500, anthropic).get("/").json()
    assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    assert answer["error"]["message"].startswith("The server failed on this request")


def failing_client(checkpoint, *flags):
    server = asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", *flags))

    @server.app.get("/fails/{kind}")
    async def fails(kind: str):
        raise {"http": HTTPException(500, "at /data/models/x"), "own": KeyError("/data/models/x 10.1.2.3")}[kind]

    return TestClient(server.app, raise_server_exceptions=False)


@pytest.mark.parametrize("kind", ["http", "own"])
def test_an_internal_exception_is_not_shown(kind, checkpoint):
    answer = failing_client(checkpoint).get(f"/fails/{kind}", headers={"X-Request-Id": "abc"})
    assert answer.status_code == 500
    assert json.loads(answer.text)["error"]["message"].endswith("Its log has the reason under abc.")


def test_if_switched_off_an_internal_exception_is_shown(checkpoint):
    assert "10.1.2.3" in failing_client(checkpoint, "--duet-plain-errors", "off").get("/fails/own").text
