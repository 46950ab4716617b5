from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from duet_server.demo import DEMO_MARK
from duet_training.random_llava import DECODER_SIZES, TOWER_SIZES, write_llava
from tests.api.stand_in import QUESTION, StandInServer, stand_in_server


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("random"), TOWER_SIZES, DECODER_SIZES, config={DEMO_MARK: True})


@pytest.fixture(scope="session")
def server(checkpoint) -> StandInServer:
    """A random model (576 patches, 8 layers, boundaries 4 and 6) with a stand-in engine."""
    return asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", "--max-num-batched-tokens", "2048"))


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
