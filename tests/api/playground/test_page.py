from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from duet_server.api import playground
from duet_server.api.playground.page import HEADERS
from tests.api.stand_in import stand_in_server

STATIC = Path(playground.__file__).parent / "static"
FILES = sorted(path.name for path in STATIC.iterdir())
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def test_the_page_and_every_file_it_names_are_served(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    named = set(re.findall(r'(?:href|src)="playground/([\w.]+)"', page.text))
    for module in (path.read_text() for path in STATIC.glob("*.js")):
        named |= set(re.findall(r'from "\./([\w.]+)"', module))
    assert named | {"index.html"} == set(FILES), "nothing is missing, nothing is left over"


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_its_type_and_its_headers(client, name):
    response = client.get(f"/playground/{name}")
    assert response.status_code == 200
    assert response.content == (STATIC / name).read_bytes()
    assert response.headers["content-type"].split(";")[0] == TYPES[Path(name).suffix]
    assert HEADERS.items() <= {(key.title(), value) for key, value in response.headers.items()}


def test_the_policy_allows_what_this_server_sends_and_nothing_inline(client):
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'self'"
    assert rules["img-src"] == "'self' blob: data:"
    assert "unsafe" not in policy
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?![^>]*src=)", page)
    assert not [name for name in FILES if re.search(r"https?://(?!www\.w3\.org)", (STATIC / name).read_text())]


@pytest.mark.parametrize("path", ["/", "/playground/app.js"])
def test_an_unchanged_file_is_not_sent_again(client, path):
    etag = client.get(path).headers["etag"]
    response = client.get(path, headers={"If-None-Match": etag})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["cache-control"] == "no-cache"
    assert client.head(path).headers["etag"] == etag


@pytest.mark.parametrize("path", ["/playground/", "/playground/none.js", "/playground/..%2fpage.py"])
def test_there_is_nothing_else_under_the_pages_path(client, path):
    assert client.get(path).status_code == 404


def test_openapi_does_not_list_the_page(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/playground")]


@pytest.fixture(scope="module")
def other_client(checkpoint):
    return TestClient(asyncio.run(stand_in_server(checkpoint, "--duet-playground", "off")).app)


@pytest.mark.parametrize("path", ["/", "/playground/app.js"])
def test_the_page_can_be_switched_off(other_client, path):
    response = other_client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == 404
    assert other_client.get("/v1/compression").status_code == 200
