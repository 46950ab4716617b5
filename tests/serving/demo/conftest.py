"""One server for all tests in this folder: the one that starts when no model is named."""

from __future__ import annotations

import openai
import pytest

from tests.serving.running_server import RunningServer, running_server


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    words = ["duet_server.cli", "serve", "--max-num-batched-tokens", "2048", "--kv-cache-memory-bytes", "134217728"]
    with running_server(folder / "log", words, XDG_CACHE_HOME=str(folder), DUET_DEFAULT="light") as server:
        yield server


@pytest.fixture(scope="package")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
