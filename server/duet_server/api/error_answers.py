"""Error answers on their way to the client, written anew: what the middlewares that touch them share."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send


class RewrittenErrors:
    """Sends an answer on, or if it is an error in JSON, what ``rewrite`` makes of it once all of it is there.

    Args:
        to_client: where the answer goes.
        rewrite: from an error's status and body to the body that is sent.
    """

    def __init__(self, to_client: Send, rewrite: Callable[[int, bytes], bytes]) -> None:
        self._to_client, self._rewrite = to_client, rewrite
        self._held: Message | None = None  # an error's start, until its body's length is known
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
