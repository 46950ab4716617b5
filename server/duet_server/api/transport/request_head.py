"""Checks the head of every request, before its body is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from duet_server.api.errors import Reason
from duet_server.api.lifecycle.request_id import HEADER
from duet_server.plan import SettingsError

_CLOSE = {"Connection": "close"}
_AUTHORITY = re.compile(r"https?://[^/]*", re.IGNORECASE)


class RequestHead:
    """ASGI middleware: refuses what the server would misread, and reads a target that is a whole URL.

    Args:
        app: the app inside.
        max_headers: the largest number of header lines.
        count_rejected: called with the reason of each refusal.
    """

    def __init__(self, app: ASGIApp, max_headers: int, count_rejected: Callable[[Reason], None]) -> None:
        self.app, self.max_headers, self.count_rejected = app, max_headers, count_rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "100-continue" in headers.get("expect", "").lower():
                receive, send = _closing_unless_read(receive, send)
            refusal = self._refusal(scope, headers)
            await (refusal or self.app)(_in_origin_form(scope), receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if not scope.get("http_version", "1.1").startswith("1."):  # such as HTTP/2 with prior knowledge
            return self._refuse(505, "HTTP version", scope["http_version"], "1.1", _CLOSE)
        if "transfer-encoding" in headers and "content-length" in headers:  # RFC 9112, 6.1: an attempt at smuggling
            length = headers["content-length"]
            return self._refuse(400, "Content-Length", length, "none next to Transfer-Encoding", _CLOSE)
        num_headers = len([name for name in headers if name != HEADER])  # our own id is among them
        if num_headers > self.max_headers:
            return self._refuse(431, "number of headers", num_headers, f"at most {self.max_headers}", reason="limit")
        for encoding in headers.getlist("content-encoding"):
            if encoding.lower() not in ("", "identity"):
                return self._refuse(415, "Content-Encoding", encoding, "identity", {"Accept-Encoding": "identity"})
        return None

    def _refuse(
        self,
        status: int,
        field: str,
        value: object,
        expected: str,
        headers: dict[str, str] | None = None,
        reason: Reason = "unsupported",
    ) -> Response:
        self.count_rejected(reason)
        sentence, kind = str(SettingsError(field, value, expected)), HTTPStatus(status).phrase.title().replace(" ", "")
        error = create_error_response(sentence, f"{kind}Error", HTTPStatus(status), param=field)
        return JSONResponse(error.model_dump(), status, headers)


def _in_origin_form(scope: Scope) -> Scope:
    """The scope of ``GET http://host/path`` as that of ``GET /path``. RFC 9112, 3.2.2 has servers accept both."""
    if not (authority := _AUTHORITY.match(scope["path"])):
        return scope
    path, raw_path = scope["path"][authority.end() :] or "/", scope["raw_path"].split(b"/", 3)[3:]
    return {**scope, "path": path, "raw_path": b"/" + b"".join(raw_path)}


def _closing_unless_read(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """For a client that waits for 100 Continue: whether its body still comes is open if it gets an answer instead.

    So that the next request is not taken for the body, the connection ends with the answer.
    """
    is_read = False

    async def noting_receive() -> Message:
        nonlocal is_read
        is_read = True
        return await receive()

    async def closing_send(message: Message) -> None:
        if message["type"] == "http.response.start" and not is_read:
            MutableHeaders(raw=message["headers"])["connection"] = "close"
        await send(message)

    return noting_receive, closing_send
