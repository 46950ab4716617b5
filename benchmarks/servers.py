"""Starts and stops the servers under test, with the same flags for both."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

ServerKind = Literal["stock", "duet"]
MODEL_NAME = "benchmark"
MAX_NUM_SEQS = 128
START_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """The flags with which both servers are started."""

    checkpoint: Path
    dtype: str
    kv_cache_bytes: int
    block_size: int
    max_num_batched_tokens: int
    enforce_eager: bool
    num_api_servers: int
    more: Sequence[str] = ()

    def as_argv(self) -> list[str]:
        argv = ["--served-model-name", MODEL_NAME, "--load-format", "dummy", "--dtype", self.dtype]
        argv += ["--max-model-len", "2048", "--max-num-batched-tokens", str(self.max_num_batched_tokens)]
        argv += ["--max-num-seqs", str(MAX_NUM_SEQS), "--api-server-count", str(self.num_api_servers)]
        argv += ["--kv-cache-memory-bytes", str(self.kv_cache_bytes), "--block-size", str(self.block_size)]
        # Without these caches, every picture is new to the server.
        argv += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0", "--limit-mm-per-prompt", '{"image": 1}']
        return [*argv, *(["--enforce-eager"] if self.enforce_eager else []), *self.more]


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    kind: ServerKind
    url: str

    def metrics(self) -> str:
        """The server's current metrics, in Prometheus's text format."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as response:
            return response.read().decode()

    def block_pool(self) -> tuple[int, int]:
        """The number of KV-cache blocks, and their size in tokens."""
        info = next(line for line in self.metrics().splitlines() if line.startswith("vllm:cache_config_info{"))
        labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
        return int(labels["num_gpu_blocks"]), int(labels["block_size"])


def cpu_seconds() -> dict[str, float]:
    """CPU seconds of each process of the running server so far, by process id and title."""
    seconds = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds[f"{process.pid} {' '.join(process.cmdline())}"] = sum(process.cpu_times()[:2])
    return seconds


@contextlib.contextmanager
def running_server(kind: ServerKind, flags: ServerFlags, log: Path) -> Iterator[Server]:
    """Start a server under test, wait until it answers, and stop it."""
    plugins = {"stock": "none", "duet": "duet"}[kind]
    with running_process(_command(kind, flags), log, VLLM_PLUGINS=plugins) as url:
        yield Server(kind, url)


@contextlib.contextmanager
def running_process(command: Sequence[str], log: Path, **environment: str) -> Iterator[str]:
    """Start a server on a free port, wait until it answers, and stop it with all its processes. Yields its URL.

    Raises:
        RuntimeError: if the server does not start. Every exception has a note with the end of the server's log.
    """
    port = _free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, process)
        yield url
    except Exception as error:
        error.add_note(f"the end of the server's log:\n{_tail(log)}")
        raise
    finally:
        _stop(process)


def _command(kind: ServerKind, flags: ServerFlags) -> list[str]:
    model = str(flags.checkpoint)
    if kind == "stock":
        return [sys.executable, "-m", "benchmarks.serving.stock_server", model, *flags.as_argv()]
    return [sys.executable, "-m", "duet_server.cli", "serve", model, *flags.as_argv()]


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start (exit status {process.poll()})")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-8000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the server shut down by itself; then kill what is left of its process group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
