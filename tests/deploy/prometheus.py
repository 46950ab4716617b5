"""Debian's Prometheus and its promtool."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

SCRAPE = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: duet-server
    static_configs: [{{targets: ["{target}"]}}]
"""


def program(name: str) -> str:
    """The program's path. If it is not installed, the test is skipped, except in CI, which installs it."""
    path = shutil.which(name)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed: make test-tools")
    return path


@contextmanager
def running_prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """Prometheus on a loopback port, scraping ``target`` (host:port) every second; yields a client of its HTTP API."""
    (folder / "prometheus.yml").write_text(SCRAPE.format(target=target))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        transport = httpx.HTTPTransport(retries=5)  # waits until it listens
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=10, transport=transport) as client:
            _wait_until_ready(client)
            yield client
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(client: httpx.Client) -> None:
    """Wait, because Prometheus listens and answers 503 before it has read its storage."""
    deadline = time.monotonic() + 60
    while not (answer := client.get(client.base_url.join("/-/ready"))).is_success:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
