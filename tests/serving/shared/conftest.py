"""One server for all tests in this folder. Its weights are random, so its answers are noise of any requested length."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import openai
import pytest
from playwright.sync_api import expect, sync_playwright

from benchmarks.robustness.small_server import FLAGS as SMALL
from benchmarks.robustness.small_server import MODEL, write_random
from tests.serving.picture_host import ADDRESS, write_certificate
from tests.serving.running_server import RunningServer, running_server
from tests.serving.shared.playground_page import DESKTOP, Playground

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync")
WAIT_MS = 60_000

# Flags for tool calls, and for pictures from a loopback host whose certificate is the only one that the server trusts.
FLAGS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--duet-media-allow-networks", f"{ADDRESS}/32"]


@pytest.fixture(scope="package")
def certificate(tmp_path_factory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="package")
def server(tmp_path_factory, certificate):
    folder = tmp_path_factory.mktemp("shared")
    words = ["duet_server.cli", "serve", str(write_random(folder)), "--served-model-name", MODEL, *SMALL, *FLAGS]
    with running_server(folder / "log", words, DUET_DEFAULT="light", SSL_CERT_FILE=str(certificate)) as server:
        yield server


@pytest.fixture(scope="package")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no chromium here: make test-tools installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """Open the page in a new browser context. At the end, no page may have had a problem."""
    opened = []

    def open_(**context):
        page = browser.new_context(**{"viewport": DESKTOP, **context}).new_page()
        page.set_default_timeout(WAIT_MS)
        opened.append(Playground(page, server.base_url))
        return opened[-1]

    expect.set_options(timeout=WAIT_MS)
    yield open_
    for playground in opened:
        playground.page.context.close()
        assert playground.problems == []


@pytest.fixture
def playground(open_page):
    return open_page()
