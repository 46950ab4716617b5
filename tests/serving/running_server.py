"""A server in a separate process, used over HTTP like a real server."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.servers import running_process

SMALL = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--kv-cache-memory-bytes", "134217728")
STOCK = "none"  # value of VLLM_PLUGINS: there is no plugin with this name, so vLLM loads none


class RunningServer:
    """``ask`` waits for the answer; ``client`` is for everything else."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.client = httpx.Client(base_url=base_url, timeout=120)

    def ask(self, content: Any, **fields: Any) -> dict[str, Any]:
        """Greedy chat completion of one user message: 12 tokens (EOS is ignored), with their ids."""
        response = self.client.post("/v1/chat/completions", json=chat(content, **fields))
        assert response.status_code == 200, response.text
        return response.json()


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 12,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **fields,
    }


def picture_and_text(picture: Path, text: str) -> list[dict[str, Any]]:
    encoded = base64.b64encode(picture.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
    return [image, {"type": "text", "text": text}]


def token_ids(answer: dict[str, Any]) -> list[int]:
    return answer["choices"][0]["token_ids"]


def check_all_at_once(
    server: RunningServer,
    ask: Callable[[RunningServer, Any], dict[str, Any]],
    cases: Sequence[Any],
    same: Any,
    plain: Any,
) -> None:
    """Ask all golden cases at once, twice, with a text among them, and ``plain``: the case ``same``, uncompressed."""
    text = "What is the capital of France?"
    expected_plain, expected_text = token_ids(server.ask(plain)), token_ids(server.ask(text))
    assert expected_plain != same.tokens
    with ThreadPoolExecutor(32) as pool:
        for _ in range(2):
            served = [pool.submit(ask, server, case) for case in cases]
            others = [pool.submit(server.ask, plain), pool.submit(server.ask, text, compression="aggressive")]
            assert [token_ids(answer.result()) for answer in served] == [case.tokens for case in cases]
            assert [token_ids(answer.result()) for answer in others] == [expected_plain, expected_text]


@contextmanager
def running_server(log: Path, words: Sequence[str], **environment: str) -> Iterator[RunningServer]:
    """Start ``python -m`` with ``words``."""
    environment = {"NO_COLOR": "1", "VLLM_NO_USAGE_STATS": "1", **environment}
    with running_process([sys.executable, "-m", *words], log, **environment) as url:
        yield RunningServer(url)


def duet_server(log: Path, checkpoint: Path, *flags: str, **environment: str) -> Any:
    return running_server(log, ["duet_server.cli", "serve", str(checkpoint), *SMALL, *flags], **environment)


def stock_server(log: Path, checkpoint: Path, *flags: str) -> Any:
    """The pinned vLLM without our plugin, started as a module, because the CPU wheel's own command does not start."""
    words = ["vllm.entrypoints.openai.api_server", "--model", str(checkpoint), *SMALL, *flags]
    return running_server(log, words, VLLM_PLUGINS=STOCK)
