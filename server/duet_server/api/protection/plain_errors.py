"""Error responses in one shape, without file paths and without the text of internal exceptions."""

from __future__ import annotations

import json
import uuid
from functools import partial
from http import HTTPStatus
from typing import Any

import regex as re
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.utils import sanitize_message
from vllm.logger import init_logger

from duet_server.api.error_answers import RewrittenErrors
from duet_server.api.errors import remembered_error

logger = init_logger(f"vllm.{__name__}")

# An absolute path of two names or more, but no part of a URL and no route of this server.
_PATH = re.compile(r"(?<![\w:/.~-])/(?!v\d+/|inference/|cohere/)(?:[\w.@+~-]+/)+[\w.@+~-]*")


class PlainErrors:
    """ASGI middleware around the whole app. Details of an internal failure go to the log, under the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = RewrittenErrors(send, partial(plain_body, scope)).send
        await self.app(scope, receive, send)


def plain_body(scope: Scope, status: int, body: bytes) -> bytes:
    """The body to send instead of an error response's body."""
    try:
        content = json.loads(body)
    except ValueError:
        return body
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        content = _in_openais_shape(content, status)
        content["error"]["message"] = _see_log(scope, body)
    elif isinstance(content, dict) and "detail" in content:
        content = _in_openais_shape(content, status)
    shown = content if remembered_error(scope) else _without_paths(content)
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def _see_log(scope: Scope, body: bytes) -> str:
    request_id = Headers(scope=scope).get("x-request-id", uuid.uuid4().hex)[:128]
    logger.error("Request %s failed: %s", request_id, body.decode(errors="replace"))
    return f"The server failed on this request. Its log has the reason under {request_id}."


def _in_openais_shape(content: Any, status: int) -> dict[str, Any]:
    """Add an ``error`` object if there is none. Starlette's own responses, such as 404 and 405, have none."""
    if isinstance(content, dict) and isinstance(content.get("error"), dict):
        return content
    detail = content.get("detail") if isinstance(content, dict) else None
    reason = HTTPStatus(status)
    kind = reason.phrase.title().replace(" ", "").removesuffix("Error") + "Error"
    return dict(create_error_response(detail if isinstance(detail, str) else reason.phrase, kind, reason).model_dump())


def _without_paths(content: Any) -> Any:
    if isinstance(content, str):
        return sanitize_message(_PATH.sub("<path>", content))
    if isinstance(content, list):
        return [_without_paths(item) for item in content]
    return {key: _without_paths(value) for key, value in content.items()} if isinstance(content, dict) else content
