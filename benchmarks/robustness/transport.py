"""Sends requests to a server in unusual packets: ``python -m benchmarks.robustness.transport``.

They are those of Java's HTTP client and of ``curl --http2``, HTTP/1.0, pipelined, chunked and split requests, and
bodies that look like requests. Each must be answered exactly once, and the answer must be the one to this request.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks import check_cli
from benchmarks.result_files import table
from benchmarks.robustness.small_server import small_server

NAME = "transport"
PAUSE_S = 0.003  # between two packets, so that the server sees both
WAIT_S = 120
INNER = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"  # a request, sent as a body
# What JDK 17's HttpClient and curl 8 offer on plain HTTP.
JDK = {
    "Connection": "Upgrade, HTTP2-Settings",
    "HTTP2-Settings": "AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
    "Upgrade": "h2c",
    "User-Agent": "Java-http-client/17.0.19",
}
CURL = {"Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA", "Connection": "Upgrade, HTTP2-Settings"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's id, and what its answer must be: its status and, for a chat, the text whose tokens it reports."""

    id: str
    status: int = 200
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one connection sends, packet by packet."""

    kind: str
    packets: Sequence[bytes]
    asked: Sequence[Asked]


@dataclass(frozen=True, slots=True)
class Answer:
    id: str | None
    status: int
    body: bytes


def message(head: str, id: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
    """A request's head, for a body that is sent with its length, or without a body."""
    length = {} if body is None else {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [head, *(f"{name}: {value}" for name, value in {"X-Request-Id": id, **headers, **length}.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def chat(text: str) -> bytes:
    fields = {"max_tokens": 1, "temperature": 0, "compression": "off", "return_token_ids": True}
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


def post(id: str, body: bytes, path: str = "/v1/chat/completions", version: str = "1.1", **headers: str) -> bytes:
    return message(f"POST {path} HTTP/{version}", id, {"Host": "x", **headers}, body)


class Speaker:
    """Makes the conversations of one kind after another. Ids and texts are new in each."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"transport {seed}")
        self._number = 0

    def conversations(self, count: int) -> list[Conversation]:
        return [self.conversation(kind) for kind in islice(cycle(KINDS), count)]

    def conversation(self, kind: str) -> Conversation:
        """Ends with an ordinary request that closes the connection, unless the kind closes it itself."""
        packets, asked = KINDS[kind](self)
        if "1.0" not in kind:
            last = self._ask()
            packets.append(message("GET /health/live HTTP/1.1", last.id, {"Host": "x", "Connection": "close"}))
            asked.append(Asked(last.id))
        return Conversation(kind, packets, asked)

    def _ask(self) -> Asked:
        self._number += 1
        return Asked(f"transport-{self._number}", text=f"{self._rng.randrange(10**9)} is number {self._number}")

    def offer(
        self, headers: dict[str, str], *, apart: bool, before: bytes = b"", behind: bytes = b""
    ) -> tuple[list[bytes], list[Asked]]:
        asked = self._ask()
        body = chat(asked.text)
        head, body = before + post(asked.id, body, **headers), body + behind
        return [head, body] if apart else [head + body], [asked]

    def inner(self, status: int, path: str, headers: dict[str, str]) -> tuple[list[bytes], list[Asked]]:
        asked = self._ask()
        return [post(asked.id, INNER, path, **headers), INNER], [Asked(asked.id, status)]

    def old(self, headers: dict[str, str], *behind: bytes) -> tuple[list[bytes], list[Asked]]:
        asked = self._ask()
        body = chat(asked.text)
        return [message("POST /v1/chat/completions HTTP/1.0", asked.id, headers, body) + body, *behind], [asked]

    def pipelined(self) -> tuple[list[bytes], list[Asked]]:
        several = [self._ask() for _ in range(3)]
        bodies = [chat(asked.text) for asked in several]
        return [b"".join(post(asked.id, body) + body for asked, body in zip(several, bodies, strict=True))], several

    def chunked(self) -> tuple[list[bytes], list[Asked]]:
        asked = self._ask()
        headers = {"Host": "x", "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        chunks = [b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in self._pieces(chat(asked.text), 5)]
        return [message("POST /v1/chat/completions HTTP/1.1", asked.id, headers), *chunks, b"0\r\n\r\n"], [asked]

    def split(self, num_pieces: int | None = None) -> tuple[list[bytes], list[Asked]]:
        asked = self._ask()
        body = chat(asked.text)
        whole = post(asked.id, body) + body
        return list(self._pieces(whole, num_pieces or len(whole))), [asked]

    def _pieces(self, whole: bytes, number: int) -> Iterator[bytes]:
        cuts = sorted(self._rng.sample(range(1, len(whole)), number - 1))
        return (whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True))


KINDS: dict[str, Callable[[Speaker], tuple[list[bytes], list[Asked]]]] = {
    "JDK": lambda speaker: speaker.offer(JDK, apart=True),
    "curl --http2": lambda speaker: speaker.offer(CURL, apart=False),
    "offer of TLS": lambda speaker: speaker.offer({"Connection": "Upgrade", "Upgrade": "TLS/1.0"}, apart=True),
    "offer of WebSocket": lambda speaker: speaker.offer({"Connection": "Upgrade", "Upgrade": "websocket"}, apart=True),
    "100-continue": lambda speaker: speaker.offer({"Expect": "100-continue"}, apart=True),
    "HTTP/1.0": lambda speaker: speaker.old({}),
    "HTTP/1.0 keep-alive": lambda speaker: speaker.old({"Connection": "keep-alive"}),
    "HTTP/1.0, then an empty line": lambda speaker: speaker.old({}, b"\r\n"),
    "pipelined": Speaker.pipelined,
    "empty line behind a body": lambda speaker: speaker.offer({}, apart=False, behind=b"\r\n"),
    "empty line before a request": lambda speaker: speaker.offer({}, apart=True, before=b"\r\n"),
    "chunked": Speaker.chunked,
    "split": lambda speaker: speaker.split(6),
    "split into bytes": Speaker.split,
    "body is a request": lambda speaker: speaker.inner(400, "/v1/chat/completions", {}),
    "body is a request, JDK": lambda speaker: speaker.inner(400, "/v1/chat/completions", JDK),
    "body that no route reads": lambda speaker: speaker.inner(404, "/v1/nothing", JDK),
    "body of unknown coding": lambda speaker: speaker.inner(415, "/v1/models", {"Content-Encoding": "br"}),
}


async def converse(url: str, packets: Sequence[bytes]) -> bytes:
    """Everything that the server sends until it closes the connection."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        for packet in packets:
            writer.write(packet)
            await asyncio.sleep(PAUSE_S if len(packets) < 20 else 0)
        return await asyncio.wait_for(reader.read(), WAIT_S)
    finally:
        writer.close()


class _Received(io.BytesIO):
    """Received bytes in the place of a socket. HTTPResponse closes it after each answer; more may follow."""

    def makefile(self, mode: str) -> _Received:
        return self

    def close(self) -> None:
        pass


def answers_in(received: bytes) -> list[Answer]:
    """The answers, one after another, up to the last byte.

    Raises:
        http.client.HTTPException: if the bytes are anything else.
    """
    source, answers = _Received(received), []
    while source.tell() < len(received):
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type]
        response.begin()
        answers.append(Answer(response.headers["x-request-id"], response.status, response.read()))
    return answers


async def fault(url: str, session: aiohttp.ClientSession, conversation: Conversation) -> str | None:
    """What is wrong with the answers to a conversation, if anything."""
    try:
        answers = answers_in(await converse(url, conversation.packets))
    except (OSError, TimeoutError, http.client.HTTPException) as error:
        return repr(error)
    asked = conversation.asked
    if [(answer.id, answer.status) for answer in answers] != [(item.id, item.status) for item in asked]:
        return f"answered {[answer.status for answer in answers]}, not {[item.status for item in asked]} in this order"
    for item, answer in zip(asked, answers, strict=True):
        if item.text and json.loads(answer.body)["prompt_token_ids"] != await prompt_of(session, item.text):
            return "the answer is to another text"
    return None


async def prompt_of(session: aiohttp.ClientSession, text: str) -> list[int]:
    """The tokens of a chat, as an ordinary client is told them."""
    async with session.post("/tokenize", json={"messages": [{"role": "user", "content": text}]}) as response:
        return (await response.json())["tokens"]


async def converse_all(url: str, conversations: Sequence[Conversation], concurrency: int) -> list[str | None]:
    """The faults, in the order of the conversations."""
    in_flight = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(url, raise_for_status=True) as session:

        async def one(conversation: Conversation) -> str | None:
            async with in_flight:
                return await fault(url, session, conversation)

        return await asyncio.gather(*map(one, conversations))


def check(args: argparse.Namespace, log: Path) -> tuple[dict[str, Any], list[str]]:
    conversations = Speaker(args.seed).conversations(args.connections)
    with small_server(log) as url:
        faults = asyncio.run(converse_all(url, conversations, args.concurrency))
    num_asked: Counter[str] = Counter()
    for conversation in conversations:
        num_asked[conversation.kind] += len(conversation.asked)
    faulty = Counter((item.kind, fault) for item, fault in zip(conversations, faults, strict=True) if fault)
    rows = [[kind, number, sum(n for (k, _), n in faulty.items() if k == kind)] for kind, number in num_asked.items()]
    print(table(["connections that send", "requests", "at fault"], [*rows, ["all", num_asked.total(), faulty.total()]]))
    return {"requests": num_asked}, [f"{number} times {kind}: {fault}" for (kind, fault), number in faulty.items()]


def main() -> None:
    parser = check_cli.parser("python -m benchmarks.robustness.transport", NAME, __doc__)
    parser.add_argument("--connections", type=int, default=600, help="most send two requests (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="connections at a time (%(default)s)")
    check_cli.run(NAME, parser.parse_args(), check)


if __name__ == "__main__":
    main()
