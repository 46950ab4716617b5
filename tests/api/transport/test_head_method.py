from __future__ import annotations

import pytest

from tests.api.lifecycle.test_health import engine  # noqa: F401 - a fixture


def paths(app, method):
    found = {route.path for route in app.routes if method in (getattr(route, "methods", None) or ())}
    return sorted(path for path in found if "{" not in path)


def comparable(answer, *varying):
    return {name: value for name, value in answer.headers.items() if name not in {"x-request-id", *varying}}


def test_head_answers_as_get_without_a_body_on_every_route(client, server, engine):  # noqa: F811
    answering = {"/", "/health", "/health/live", "/health/ready", "/ping", "/metrics", "/v1/models", "/v1/compression",
                 "/openapi.json"}  # fmt: skip
    assert answering <= set(paths(server.app, "GET"))
    for path in paths(server.app, "GET"):
        head, get = client.head(path), client.get(path)
        assert get.status_code == 200 or path not in answering, path
        assert (head.status_code, head.content) == (get.status_code, b""), path
        varying = ["content-length"] if path == "/metrics" else []  # its numbers change
        assert comparable(head, *varying) == comparable(get, *varying), path
        assert head.headers.get("content-length") != "0" or not get.content, path


def test_a_server_that_is_not_ready_says_so_to_head(client, engine):  # noqa: F811
    engine.answers = False
    for path in ("/health", "/health/ready", "/ping"):
        head = client.head(path)
        assert (head.status_code, head.content) == (503, b"")


@pytest.mark.parametrize("path", ["/v1/models/demo", "/v1/models/other", "/nowhere"])
def test_so_it_does_for_one_model_and_for_errors(path, client):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert comparable(head) == comparable(get)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/compression/plan"])
def test_routes_without_get_refuse_head_and_say_what_they_allow(path, client):
    head = client.head(path)
    assert (head.status_code, head.headers["allow"], head.content) == (405, "POST", b"")
