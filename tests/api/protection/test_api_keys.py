from __future__ import annotations

import asyncio
import re
from urllib.parse import unquote

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from duet_server.api.protection.api_keys import is_open
from tests.api.stand_in import stand_in_server

KEY = {"Authorization": "Bearer secret-1"}
OPEN = {"/health", "/health/live", "/health/ready", "/ping", "/"}


def keyed_server(checkpoint, *flags):
    return asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", "--api-key", "secret-1", *flags))


@pytest.fixture(scope="module")
def app(checkpoint):
    return keyed_server(checkpoint).app


@pytest.fixture
def keyless(app):
    return TestClient(app, raise_server_exceptions=False)


def endpoints(app):
    for route in app.routes:
        for method in getattr(route, "methods", None) or ["GET"]:
            yield method, re.sub(r"{[^}]*}", "x", route.path)


def test_every_route_except_health_and_the_page_needs_a_key(app, keyless):
    refused = {path for method, path in endpoints(app) if keyless.request(method, path).status_code == 401}
    assert {path for _, path in endpoints(app)} - refused <= OPEN | {"/playground"}
    assert {"/metrics", "/tokenize", "/docs", "/openapi.json", "/v1/models", "/version", "/invocations"} <= refused


def test_a_refusal_has_openais_shape(keyless):
    answer = keyless.get("/v1/models")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (401, 401, "AuthenticationError")
    assert error["param"] == "Authorization"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["", "secret-1", "Basic secret-1", "Bearer", "Bearer secret-2", "Bearer secret-1 "])
def test_wrong_or_missing_keys_are_refused(header, keyless):
    assert keyless.get("/tokenize", headers={"Authorization": header}).status_code == 401


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/version", "/openapi.json"])
def test_a_right_key_is_accepted(path, keyless):
    assert keyless.get(path, headers=KEY).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "//v1/models"),
        ("GET", "/health/../v1/models"),
        ("GET", "/health/"),
        ("GET", "/healthy"),
        ("GET", "/HEALTH"),
        ("GET", "/playground/../v1/models"),
        ("GET", "/playground/%2e%2e/v1/models"),
        ("POST", "/playground/x"),
        ("POST", "/"),
        ("GET", "/metrics/"),
        ("GET", "/nothing"),
    ],
)
def test_other_spellings_of_open_paths_need_a_key(method, path, app):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": unquote(path), "headers": [], "query_string": b""}
    asyncio.run(app(scope, None, send))
    assert sent[0]["status"] == 401


def test_behind_a_proxys_path(checkpoint):
    client = TestClient(
        keyed_server(checkpoint, "--root-path", "/llm").app, root_path="/llm", raise_server_exceptions=False
    )
    assert client.get("/llm/health").status_code != 401
    assert client.get("/llm/metrics").status_code == 401
    assert client.get("/llm/v1/models").status_code == 401
    assert client.get("/llm/v1/models", headers=KEY).status_code == 200


def test_websockets_need_a_key(keyless):
    with pytest.raises(WebSocketDisconnect), keyless.websocket_connect("/v1/realtime"):
        raise AssertionError("connected")
    assert not is_open({"type": "websocket", "path": "/health", "headers": []})


def test_a_browsers_preflight_request_needs_no_key(keyless):
    headers = {"Origin": "http://page.test", "Access-Control-Request-Method": "POST"}
    assert keyless.options("/v1/models", headers=headers).status_code != 401


def test_if_switched_off_vllms_own_key_check_remains(checkpoint):
    client = TestClient(keyed_server(checkpoint, "--duet-guard-all-routes", "off").app)
    assert client.get("/version").status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_without_keys_everything_is_open(client):
    assert client.get("/v1/models").status_code == 200
    assert client.get("/metrics").status_code == 200
