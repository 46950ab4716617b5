from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from duet_server.demo import demo_checkpoint
from tests.api.stand_in import QUESTION, StandInServer, stand_in_server


@pytest.fixture(scope="session")
def demo_path(tmp_path_factory):
    return demo_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def server(demo_path) -> StandInServer:
    """The demo model (576 patches, 8 layers, boundaries 4 and 6) over a stand-in engine."""
    return asyncio.run(stand_in_server(demo_path, "--served-model-name", "demo", "--max-num-batched-tokens", "2048"))


@pytest.fixture
def client(server) -> TestClient:
    server.engine.calls.clear()
    return TestClient(server.app, raise_server_exceptions=False)


@pytest.fixture
def chat(client):
    """Send a chat completion; by default one picture and one question."""

    def send(*messages, path="/v1/chat/completions", **fields):
        body = {"model": "demo", "messages": list(messages) or [QUESTION], **fields}
        return client.post(path, json=body)

    return send
