"""Gives every request one id, for its headers, error bodies, vLLM's own ids and the logs."""

from __future__ import annotations

import json
import re
import uuid
from functools import partial

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.handlers.exception import exception_handler

from duet_server.api.error_answers import RewrittenErrors
from duet_server.logs import request_id

HEADER = "x-request-id"
_ACCEPTED = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


def chosen_id(headers: Headers) -> str:
    """The client's id if it is safe in headers and logs, else a new one."""
    given = headers.get(HEADER, "")
    return given if _ACCEPTED.fullmatch(given) else uuid.uuid4().hex


class RequestIdMiddleware:
    """Outermost, so that every response has the id. vLLM's handlers take their ids from the request's header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        chosen = chosen_id(Headers(scope=scope))
        MutableHeaders(scope=scope)[HEADER] = chosen
        marked = request_id.set(chosen)
        answer = _Answer(send, chosen)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            # Starlette would answer outside all middleware, so without the id.
            if scope["type"] == "http" and not answer.started:
                await (await exception_handler(Request(scope), error))(scope, receive, answer.send)
            raise
        finally:
            request_id.reset(marked)


class _Answer:
    """Puts the id into the response's header and, for an error, into its ``error`` object."""

    def __init__(self, to_client: Send, id: str) -> None:
        self.started = False
        self._id = id
        self._errors = RewrittenErrors(to_client, partial(_with_id, id))

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(raw=message["headers"])[HEADER] = self._id
        await self._errors.send(message)


def _with_id(id: str, status: int, body: bytes) -> bytes:
    try:
        content = json.loads(body)
    except ValueError:
        return body
    if isinstance(content, dict) and isinstance(content.get("error"), dict):
        content["error"]["request_id"] = id
        return json.dumps(content, ensure_ascii=False).encode()
    return body
