"""Has uvicorn parse requests with h11.

uvicorn prefers httptools if it is installed, as it is with vLLM. That parser stops at every offer to upgrade: Java's
HTTP client offers HTTP/2 with each request, and its body would be lost, or taken for a request of its own.
"""

from __future__ import annotations

import asyncio

import h11
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from duet_server.api.transport.lingering_close import LingeringTransport

_FRAMING = (b"content-length", b"transfer-encoding")


class DuetH11Protocol(H11Protocol):
    """One answer to each request, whatever it offers."""

    transport: LingeringTransport  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(LingeringTransport(transport, self._has_all))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport.stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Ignore what follows a request that said it would be the last one: an empty line would cost the answer."""
        if self.transport.is_closing():
            self.transport.wait()
        elif self.conn.their_state is not h11.MUST_CLOSE:
            super().data_received(data)

    def handle_events(self) -> None:
        """Skip empty lines before a request (RFC 9112, 2.2): some clients send one behind a body."""
        if self.conn.their_state is h11.IDLE:
            received = self.conn._receive_buffer
            received.maybe_extract_at_most(len(received) - len(bytes(received).lstrip(b"\r\n")))
        super().handle_events()

    def _should_upgrade(self) -> bool:
        """Only a GET without a body opens a WebSocket. Any other offer is ignored, as RFC 9110, 7.8 allows."""
        body = [(name, value) for name, value in self.headers if name in _FRAMING and value != b"0"]
        is_websocket = self.scope["method"] == "GET" and self._get_upgrade() == b"websocket"
        return is_websocket and not body and self._should_upgrade_to_ws()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Give a WebSocket the connection itself: its protocol closes in stages of its own."""
        self.transport = self.transport.transport  # type: ignore[assignment]
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, unless its answer has begun: then only the connection ends."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _has_all(self) -> bool:
        return self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)


def parsed_by_h11(app: ASGIApp, state: State) -> ASGIApp:
    """Returns the app, which chooses the parser when its lifespan starts: before uvicorn accepts a connection.

    Args:
        app: the app inside.
        state: the app's state. vLLM stores uvicorn's server there before it starts it.
    """

    async def choosing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and hasattr(state, "server"):
            state.server.config.http_protocol_class = DuetH11Protocol
        await app(scope, receive, send)

    return choosing
