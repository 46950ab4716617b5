"""The server's protection as a client sees it; tests/api tests its parts."""

from __future__ import annotations

import http.client
import json
import urllib.request
from urllib.parse import urlsplit

import openai
import pytest

from tests.api.web import LocalServer, serving


def test_loopback_is_not_reached(client):
    with serving(LocalServer()) as canary:
        picture = {"type": "image_url", "image_url": {"url": f"http://localhost:{canary.port}/"}}
        message = {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}
        with pytest.raises(openai.BadRequestError, match="a URL of a public host") as refused:
            client.chat.completions.create(model=client.models.list().data[0].id, messages=[message])
        assert refused.value.param == "messages[0].content[0].image_url.url"
        assert not canary.seen


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_has_arrived(announced, server):
    connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc, timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader(*(("Content-Length", str(1 << 40)) if announced else ("Transfer-Encoding", "chunked")))
    connection.endheaders()
    if not announced:
        for _ in range(65):
            connection.send(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.load(answer)["error"]["param"] == "body"
    connection.close()


def test_vllms_own_metrics_go_on_counting(client, server):
    def count():
        text = urllib.request.urlopen(f"{server.base_url}/metrics").read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(series))

    series = 'http_requests_total{handler="/v1/models"'
    before = count()
    client.models.list()
    assert count() == before + 1
