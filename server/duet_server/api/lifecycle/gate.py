"""The gate for requests: counts the requests in flight, and refuses new ones if the server cannot answer."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import RetryableRequestError

READINESS = frozenset({"/health", "/health/ready", "/ping"})  # routes of vLLM, of this server, of SageMaker
ALWAYS_OPEN = READINESS | {"/health/live", "/metrics"}
RETRY_AFTER_S = 5  # by then, a load balancer sends requests elsewhere


def unavailable(message: str) -> Response:
    """A 503 in OpenAI's error shape."""
    error = create_error_response(RetryableRequestError(message))
    headers = {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
    return JSONResponse(error.model_dump(), HTTPStatus.SERVICE_UNAVAILABLE, headers)


class Gate:
    """Open until the server drains or its engine dies."""

    def __init__(self, engine: Any) -> None:
        self.draining = False
        self.num_in_flight = 0
        self.num_finished = 0
        self._engine = engine
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def closed(self) -> str | None:
        """Why the gate is closed, as a message for clients; None while it is open."""
        if self._engine.errored:
            return "The engine has died and this server is about to stop. Try again."
        return "This server is shutting down. Try again." if self.draining else None

    async def emptied(self) -> None:
        """Wait until no request is in flight."""
        await self._empty.wait()

    async def engine_died(self, request: Request, error: Exception) -> Response:
        """Exception handler of EngineDeadError. vLLM's own would also close the listening socket at once."""
        return unavailable(self.closed or str(error))

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Returns the app behind the gate."""

        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or get_route_path(scope) in ALWAYS_OPEN:
                await app(scope, receive, send)
            elif self.closed:
                await unavailable(self.closed)(scope, receive, send)
            else:
                await self._let_in(app, scope, receive, send)

        return gated

    async def _let_in(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def send_or_excuse(message: Message) -> None:
            """Sends 503 instead of 500 if the engine is dead: some routes handle that error themselves."""
            nonlocal answered
            if message.get("status") == HTTPStatus.INTERNAL_SERVER_ERROR and self._engine.errored and not answered:
                answered = True
                await unavailable(self.closed or "")(scope, receive, send)
            elif not answered:
                await send(message)

        self.num_in_flight += 1
        self._empty.clear()
        try:
            await app(scope, receive, send_or_excuse)
        finally:
            self.num_in_flight -= 1
            self.num_finished += 1
            if not self.num_in_flight:
                self._empty.set()
