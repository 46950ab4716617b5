"""A cap on the size of a request's body, checked while it arrives and before it is parsed."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from duet_server.plan import SettingsError

_STATUS = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class BodyTooLargeError(HTTPException):
    """An HTTPException, because FastAPI turns any other exception from reading a body into a 400."""

    def __init__(self, num_bytes: int, max_bytes: int) -> None:
        super().__init__(_STATUS, str(SettingsError("body", f"{num_bytes} bytes", f"at most {max_bytes} bytes")))


class BodyLimit:
    """ASGI middleware: reading a body beyond ``max_bytes`` raises BodyTooLargeError."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, self._counted(scope, receive) if scope["type"] == "http" else receive, send)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        announced = Headers(scope=scope).get("content-length", "")
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            self._check(int(announced) if announced.isdecimal() else 0)
            message = await receive()
            num_bytes += len(message.get("body", b""))
            self._check(num_bytes)
            return message

        return counted

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise BodyTooLargeError(num_bytes, self.max_bytes)


async def refuse_body(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: 413 in OpenAI's error shape."""
    assert isinstance(error, BodyTooLargeError), f"{error=}"
    request.app.state.duet.metrics.count_rejected("limit")
    answer = create_error_response(error.detail, "RequestTooLargeError", _STATUS, param="body")
    return JSONResponse(answer.model_dump(), _STATUS, headers={"Connection": "close"})
