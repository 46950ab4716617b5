"""Rewrites error responses on their way to the client. Several middlewares use it."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send


class RewrittenErrors:
    """Forwards a response. A JSON error is held until its body is complete, then ``rewrite`` replaces the body.

    Args:
        to_client: sends an ASGI message to the client.
        rewrite: takes the error's status and body, returns the body to send.
    """

    def __init__(self, to_client: Send, rewrite: Callable[[int, bytes], bytes]) -> None:
        self._to_client, self._rewrite = to_client, rewrite
        self._held: Message | None = None  # the start of an error response, held until the length of its body is known
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_json_error(message):
            self._held = message
        elif self._held is None:
            await self._to_client(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_error(self._held)

    async def _send_error(self, start: Message) -> None:
        body = self._rewrite(start["status"], bytes(self._body))
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        await self._to_client(start)
        await self._to_client({"type": "http.response.body", "body": body})


def _is_json_error(start: Message) -> bool:
    is_error = start["status"] >= HTTPStatus.BAD_REQUEST
    return is_error and Headers(raw=start["headers"]).get("content-type", "").startswith("application/json")
