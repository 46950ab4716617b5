"""Refuses the ``compression`` field on routes that would pass over it."""

from __future__ import annotations

from duet_server.api.errors import RequestRefusedError

_COMPRESSING_ROUTES = {
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/compression/plan",
    "/v1/compression/preview",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
}


def refuse_compression_elsewhere(body: object, path: str) -> None:
    """Raise RequestRefusedError if a body asks for compression on a route without; ``path`` is the route's own."""
    if not isinstance(body, dict) or body.get("compression") in (None, "off"):
        return
    if path in _COMPRESSING_ROUTES or (path == "/invocations" and "messages" in body):
        return
    raise RequestRefusedError("unsupported", "compression", body["compression"], f"none: {path} does not compress")
