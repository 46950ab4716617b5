"""Starts the server of the long checks, a small LLaVA with random weights, and observes its processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.servers import running_process
from duet_server.demo import DEMO_MARK
from duet_training.random_llava import DECODER_SIZES, TOWER_SIZES, write_llava

MODEL = "random-llava"
FLAGS = ("--max-num-batched-tokens", "2048", "--kv-cache-memory-bytes", "134217728")
FLAGS += ("--enforce-eager", "--dtype", "float32")
# The API and the engine keep few processed pictures, so that any further growth of memory is a leak.
SMALL_CACHE = ("--mm-processor-cache-gb", "0.03125")
# The server fetches pictures from this address only, whichever URL a request has.
LOOPBACK_ONLY = ("--allowed-media-domains", "127.0.0.1")


@contextmanager
def small_server(log: Path, *flags: str, **environment: str) -> Iterator[str]:
    """Start the server on a free loopback port. Yields its URL."""
    model = str(write_random(log.parent))
    command = [sys.executable, "-m", "duet_server.cli", "serve", model, *FLAGS, *SMALL_CACHE, *LOOPBACK_ONLY, *flags]
    environment = {"NO_COLOR": "1", "VLLM_NO_USAGE_STATS": "1", **environment}
    with running_process(command, log, **environment) as url:
        yield url


def write_random(folder: Path) -> Path:
    """Write the server's checkpoint into ``folder``: 576 patches, 8 layers, and the demo model's mark."""
    checkpoint = folder / MODEL
    checkpoint.mkdir(exist_ok=True)
    return write_llava(checkpoint, TOWER_SIZES, DECODER_SIZES, config={DEMO_MARK: True})


@dataclass(frozen=True, slots=True)
class ServerProcesses:
    """The processes of a server that was started with ``--port``, with their titles at the first look."""

    titles: Mapping[psutil.Process, str]

    @classmethod
    def of(cls, url: str) -> ServerProcesses:
        """The processes of the server that this process has started and that answers at ``url``."""
        port = str(urlsplit(url).port)
        (server,) = (child for child in psutil.Process().children(recursive=True) if _port(child) == port)
        members = (server, *server.children(recursive=True))
        return cls({member: " ".join(member.cmdline()).strip()[:80] for member in members})

    def ended(self) -> list[str]:
        """The processes that have ended since then, even if another process has the same id by now."""
        return [f"{title} ({process.pid})" for process, title in self.titles.items() if not _lives(process)]

    def resident_bytes(self) -> dict[str, int]:
        """Resident memory of each process that still runs."""
        return {f"{title} ({process.pid})": process.memory_info().rss for process, title in self.titles.items()
                if _lives(process)}  # fmt: skip


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _port(process: psutil.Process) -> str | None:
    """The value of ``--port`` on a process's command line."""
    argv = process.cmdline()
    return argv[argv.index("--port") + 1] if "--port" in argv[:-1] else None
