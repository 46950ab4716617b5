from __future__ import annotations

import pytest


@pytest.fixture
def life(server):
    """The app's lifespan has not begun, so the engine has not been asked yet."""
    life = server.app.state.duet.life
    yield life
    life.pulse._answered_at, life.gate.draining = None, False


def test_the_process_is_alive_whatever_the_engine_does(client, life):
    assert client.get("/health/live").json() == {"status": "ok"}


def test_ready_only_once_the_engine_has_answered(client, life):
    response = client.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "reason": "The engine has not answered yet."}
    assert int(response.headers["retry-after"]) > 0
    life.pulse._answered_at = float("inf")
    assert client.get("/health/ready").json() == {"status": "ok"}


def test_not_ready_while_draining(client, life):
    life.pulse._answered_at = float("inf")
    life.gate.draining = True
    assert client.get("/health/ready").status_code == 503
    assert "shutting down" in client.get("/health/ready").json()["reason"]
    assert client.get("/health/live").status_code == 200
    assert client.get("/metrics").status_code == 200
    refused = client.get("/v1/models")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, 503)
    assert refused.headers["x-request-id"] == refused.json()["error"]["request_id"]
