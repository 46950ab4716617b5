from __future__ import annotations

from types import SimpleNamespace

import pytest

READINESS = ["/health", "/health/ready", "/ping"]


@pytest.fixture
def engine(server, monkeypatch):
    """The stand-in engine, which answers questions as long as ``answers`` is set. No request was asked before."""

    async def check_health():
        """vLLM's, which only finds out whether the engine has died."""

    async def collective_rpc(method):
        if not engine.answers:
            raise RuntimeError("a worker failed")

    engine = server.engine
    monkeypatch.setattr(engine, "answers", True, raising=False)
    monkeypatch.setattr(engine, "check_health", check_health, raising=False)
    monkeypatch.setattr(engine, "collective_rpc", collective_rpc, raising=False)
    output_processor = SimpleNamespace(has_unfinished_requests=lambda: False)
    monkeypatch.setattr(engine, "output_processor", output_processor, raising=False)
    return engine


def assert_unavailable(response, reason):
    assert response.status_code == 503
    assert response.json()["status"] == "unavailable"
    assert reason in response.json()["reason"]
    assert int(response.headers["retry-after"]) > 0


def test_the_process_is_alive_whatever_the_engine_does(client):
    assert client.get("/health/live").json() == {"status": "ok"}


@pytest.mark.parametrize("path", READINESS)
def test_a_server_whose_engine_answers_is_ready(client, engine, path):
    response = client.get(path)
    assert response.status_code == 200
    assert response.content == (b'{"status":"ok"}' if path == "/health/ready" else b""), "as vLLM's"


@pytest.mark.parametrize("path", READINESS)
def test_a_server_whose_engine_fails_is_not_ready(client, engine, path):
    engine.answers = False
    assert_unavailable(client.get(path), "workers failed")
    engine.answers = True
    assert client.get(path).status_code == 200


def test_sagemaker_may_post_its_ping(client, engine):
    assert client.post("/ping").status_code == 200
    engine.answers = False
    assert_unavailable(client.post("/ping"), "workers failed")


def test_probes_are_no_requests_in_flight(client, server, engine):
    finished = server.app.state.duet.life.gate.num_finished
    assert [client.get(path).status_code for path in READINESS] == [200] * 3
    assert server.app.state.duet.life.gate.num_finished == finished


def test_not_ready_while_draining(client, server, engine, monkeypatch):
    monkeypatch.setattr(server.app.state.duet.life.gate, "draining", True)
    for path in READINESS:
        assert_unavailable(client.get(path), "shutting down")
    assert client.get("/health/live").status_code == 200
    assert client.get("/metrics").status_code == 200
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, 503)
    assert refused.headers["x-request-id"] == refused.json()["error"]["request_id"]
