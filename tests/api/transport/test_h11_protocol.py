"""Through a socket: vLLM's uvicorn serves the stand-in, and what a client sends is written byte by byte."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from starlette.routing import WebSocketRoute

from benchmarks.robustness.transport import INNER, KINDS, Speaker, answers_in, chat, converse, converse_all, post
from duet_server.api.transport import lingering_close
from tests.api.listening import listening
from tests.api.stand_in import stand_in_server
from tests.serving.picture_host import write_certificate

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
BODY = chat("Hello")
POST = post("a", BODY)
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


async def accept(websocket):
    await websocket.accept()
    await websocket.close()


@pytest.fixture(scope="module")
def limited(checkpoint):
    """A stand-in with small limits and a route for WebSockets."""
    flags = ("--h11-max-header-count", "20", "--h11-max-incomplete-event-size", "20000", "--duet-max-body", "10000")
    server = asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", *flags))
    server.app.router.routes.append(WebSocketRoute("/websocket", accept))
    return server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(limited):
    async with listening(limited, timeout_keep_alive=1) as url:
        yield url


def chunked(*pieces):
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def framed(body, *headers):
    """A chat whose headers say how its body is framed."""
    return b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json",
                         *headers, b"", body])  # fmt: skip


async def statuses(url, *packets):
    """Of all answers, until the server closes the connection."""
    return [answer.status for answer in answers_in(await converse(url, packets))]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_request_is_answered_once(kind, url):
    conversations = [Speaker(seed).conversation(kind) for seed in range(3)]
    assert await converse_all(url, conversations, concurrency=3) == [None] * 3


@pytest.mark.parametrize(
    "request_",
    [
        framed(b"0\r\n\r\n" + INNER, b"Content-Length: %d" % (len(INNER) + 5), b"Transfer-Encoding: chunked"),
        framed(BODY, b"Content-Length: %d" % len(BODY), b"Content-Length: 3"),
        framed(BODY, b"Content-Length: +%d" % len(BODY)),
        framed(chunked(BODY), b"Transfer-Encoding: chunked, identity"),
        framed(chunked(BODY), b"Transfer-Encoding: xchunked"),
        framed(chunked(BODY), b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        framed(chunked(BODY), b"Transfer-Encoding : chunked"),
        framed(BODY, b"X-A: a\rContent-Length: 0", b"Content-Length: %d" % len(BODY)),
        framed(b"5\r\nabcde\r\nzz\r\n", b"Transfer-Encoding: chunked"),
        LIVE.replace(b"Host: x\r\n", b""),
        LIVE.replace(b"Host: x", b"Host: x\r\nHost: y"),
        b"GET /health/live\r\n\r\n",
    ],
)
async def test_a_request_with_two_meanings_is_refused_and_nothing_behind_it_is_read(request_, url, limited):
    num_calls = len(limited.engine.calls)
    assert await statuses(url, request_ + LIVE) == [400]
    assert len(limited.engine.calls) == num_calls


@pytest.mark.parametrize(
    "request_",
    [
        framed(BODY, b"X-A: 1\r\n 2", b"Content-Length: %d" % len(BODY)),
        framed(chunked(BODY), b"Transfer-Encoding:\r\n chunked"),
        framed(BODY, b"Content-Length: %d, %d" % (len(BODY), len(BODY))),
        framed(BODY, b"Content-Length: %d" % len(BODY)).replace(b"\r\n", b"\n"),
        framed(chunked(BODY[:9], BODY[9:])[:-2] + b"X-Trailer: 1\r\n\r\n", b"Transfer-Encoding: chunked"),
        post("a", BODY, "http://other.example:80/v1/chat/completions?a=b") + BODY,
        LIVE.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(INNER)) + INNER,
        b"GET HTTPS://other.example HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_an_unusual_request_with_one_meaning_is_answered(request_, url):
    assert await statuses(url, request_ + LAST) == [200, 200]


async def test_after_a_body_that_is_too_large_the_connection_is_closed(url):
    assert await statuses(url, post("a", b" " * 10_001) + LIVE) == [413]


def ask_in_turn(url, packets, context=None):
    """All that a client receives that writes everything before it reads, as most do. It pauses between packets."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port))
    with context.wrap_socket(connection) if context else connection as connection:
        for packet in packets:
            connection.sendall(packet)
            time.sleep(0.05)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


LARGE = b" " * 20_000_000
CLOSING = {
    "a body that is too large": ([post("a", LARGE), LARGE], 413),
    "a body that is too large, in one packet": ([post("a", LARGE) + LARGE], 413),
    "chunks that are too many": ([framed(b"", b"Transfer-Encoding: chunked"), chunked(LARGE)], 413),
    "what cannot be parsed": ([LIVE.replace(b"Host:", b"Host :"), LARGE, LARGE], 400),
    "what follows the last request": ([LAST, b"\r\n", LIVE, LARGE], 200),
}


@pytest.mark.parametrize("case", CLOSING)
async def test_a_client_that_still_sends_can_read_the_last_answer(case, url):
    packets, status = CLOSING[case]
    received = await asyncio.to_thread(ask_in_turn, url, packets)
    assert [answer.status for answer in answers_in(received)] == [status]


@pytest.mark.parametrize(("limit", "more"), [("QUIET_S", b""), ("LONGEST_S", b"\r\n")])
async def test_no_client_keeps_a_connection_for_long(limit, more, url, limited, monkeypatch):
    monkeypatch.setattr(lingering_close, limit, 0.5)
    connections = limited.app.state.server.server_state.connections
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write(LAST)
    assert answers_in(await reader.read())
    assert connections
    async with asyncio.timeout(10):
        while connections:
            writer.write(more)
            await asyncio.sleep(0.02)
    writer.close()


async def test_a_route_may_write_on_after_the_end(url):
    _, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    transport = lingering_close.LingeringTransport(writer.transport, lambda: True)
    transport.close()
    transport.write(b"more")
    assert not writer.transport.get_write_buffer_size()
    writer.close()


async def test_a_malformed_body_behind_its_answer_ends_the_connection(url):
    head = framed(b"", b"Transfer-Encoding: chunked").replace(b"/v1/chat/completions", b"/v1/nothing")
    assert await statuses(url, head, b"5\r\nabcde\r\nzz\r\n" + LIVE) == [404]


async def test_a_client_that_waits_for_100_continue_gets_it_or_a_last_answer(url):
    assert (await converse(url, [post("a", BODY, Expect="100-continue"), BODY + LAST])).startswith(b"HTTP/1.1 100 ")
    unread = post("a", BODY, "/v1/nothing", Expect="100-continue")
    assert await statuses(url, unread, LIVE) == [404]


async def test_http_2_with_prior_knowledge_is_told_the_version(url):
    (answer,) = answers_in(await converse(url, [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"]))
    assert answer.status == 505
    assert json.loads(answer.body)["error"]["message"] == "HTTP version is '2.0', expected 1.1."


async def test_a_get_opens_a_websocket_and_nothing_else_does(url):
    upgrade = b"GET /websocket HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"\r\n"
    closing = b"\x88\x80\0\0\0\0"  # the client's close frame
    assert (await converse(url, [upgrade, closing])).startswith(b"HTTP/1.1 101 ")
    with_body = upgrade[:-2] + b"Content-Length: %d\r\n\r\n" % len(INNER) + INNER
    assert await statuses(url, with_body + LAST) == [404, 200]
    assert await statuses(url, upgrade.replace(b"GET", b"POST") + LAST) == [404, 200]


@pytest.mark.parametrize(("num_headers", "status"), [(20, 200), (21, 431)])
async def test_the_number_of_headers_is_limited(num_headers, status, url):
    more = b"".join(b"X-%d: 1\r\n" % number for number in range(num_headers - 2))
    answer = answers_in(await converse(url, [LAST[:-2] + more + b"\r\n"]))[0]
    assert answer.status == status
    if status == 431:
        assert json.loads(answer.body)["error"]["message"] == "number of headers is 21, expected at most 20."


async def test_the_size_of_a_head_is_limited(url):
    assert await statuses(url, LIVE[:-2] + b"X-A: " + b"a" * 20_000, b"\r\n\r\n" + LIVE) == [400]


async def test_an_idle_connection_is_closed(url):
    assert await statuses(url, LIVE) == [200]  # ends because the server closes it after timeout_keep_alive


async def test_tls_is_still_tls(limited, tmp_path):
    certificate = write_certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    trusting.check_hostname = False
    async with listening(limited, ssl_keyfile=str(certificate), ssl_certfile=str(certificate)) as url:
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with (
            aiohttp.ClientSession(url.replace("http:", "https:"), connector=connector) as session,
            session.get("/health/live") as answer,
        ):
            assert answer.status == 200
        packets, status = CLOSING["a body that is too large"]
        received = await asyncio.to_thread(ask_in_turn, url, packets, trusting)
        assert [answer.status for answer in answers_in(received)] == [status]
