"""Asks an OpenAI-compatible endpoint many questions at a time, with greedy decoding and a ``compression`` field."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.accuracy.methods import OFF, Fields
from benchmarks.accuracy.questions import Question

MAX_TOKENS = 48  # a description of four things takes 30 tokens
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=600)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text, its tokens, and values from ``usage.compression``; None if the server does not report them."""

    text: str
    num_tokens: int | None = None
    layer_average: float | None = None
    reduction: float | None = None


class Endpoint:
    """A served model, which gets at most ``concurrency`` requests at a time. Open it with ``connect``."""

    def __init__(
        self, session: aiohttp.ClientSession, model: str, description: dict[str, Any], concurrency: int
    ) -> None:
        self._session = session
        self.model = model
        self._places = asyncio.Semaphore(concurrency)
        self.description = description

    @property
    def has_compression(self) -> bool:
        return bool(self.description.get("supported"))

    @classmethod
    async def connect(cls, session: aiohttp.ClientSession, concurrency: int) -> Endpoint:
        """Ask the server for its model. A server without ``/v1/compression`` counts as one without compression."""
        async with session.get("v1/models") as response:
            model = (await _read(response))["data"][0]["id"]
        async with session.get("v1/compression") as response:
            description = {} if response.status == 404 else await _read(response)
        return cls(session, model, description, concurrency)

    async def ask(self, questions: Sequence[Question], compression: str | Fields) -> tuple[list[Answer], float]:
        """Answers in the order of the questions, and the seconds until the last one arrived.

        Raises:
            RuntimeError: if a request is refused or fails, with the server's message.
        """
        bodies = [self._body(question, compression) for question in questions]  # encode all before the clock starts
        start = time.perf_counter()
        answers = await asyncio.gather(*map(self._answer, bodies))
        return answers, time.perf_counter() - start

    def _body(self, question: Question, compression: str | Fields) -> bytes:
        picture = {"type": "image_url", "image_url": {"url": question.picture_url()}}
        content = [picture, {"type": "text", "text": question.text}]
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        body |= {"temperature": 0, "max_tokens": MAX_TOKENS}
        if self.has_compression or compression != OFF:
            body["compression"] = compression
        return json.dumps(body).encode()

    async def _answer(self, body: bytes) -> Answer:
        headers = {"Content-Type": "application/json"}
        async with self._places, self._session.post("v1/chat/completions", data=body, headers=headers) as response:
            answer = await _read(response)
        text, usage = answer["choices"][0]["message"]["content"] or "", answer.get("usage") or {}
        tokens = usage.get("completion_tokens")
        if reported := usage.get("compression"):
            return Answer(text, tokens, reported["visual_tokens"]["layer_average"], reported["reduction"])
        return Answer(text, tokens)


def open_session(base_url: str, api_key: str | None) -> aiohttp.ClientSession:
    """Open a session for ``base_url``, which may end with ``/v1`` or not."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    root = base_url.rstrip("/").removesuffix("/v1") + "/"
    return aiohttp.ClientSession(root, headers=headers, timeout=TIMEOUT)


async def _read(response: aiohttp.ClientResponse) -> Any:
    if response.status != 200:
        raise RuntimeError(f"{response.method} {response.url}: {response.status} {(await response.text())[:500]}")
    return await response.json()
