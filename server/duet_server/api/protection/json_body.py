"""Checks that the body of a JSON route says that it is JSON, is there, and is read."""

from __future__ import annotations

import sys

from fastapi import Request, Response
from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException

from duet_server.api.body_walk import remember_body
from duet_server.api.errors import RequestRefusedError, refuse
from duet_server.api.protection.guard import check_body
from duet_server.plan.errors import MISSING, Words

_JSON = "application/json"


async def check_json_body(raw_request: Request) -> None:
    """vLLM's check of every JSON route, in clearer words, then ours.

    The plugin installs it as the dependency override of vLLM's ``validate_json_request``.
    """
    content_type = raw_request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != _JSON:
        raise RequestRefusedError("unsupported", "Content-Type", content_type or MISSING, _JSON)
    if not await raw_request.body():
        raise RequestRefusedError("malformed", "body", Words("empty"), "a JSON object")
    try:
        body = await raw_request.json()  # Starlette keeps the result
    except (ValueError, RecursionError) as error:
        if refusal := unreadable(error):
            raise refusal from error
        return  # no JSON: FastAPI says where
    remember_body(raw_request.scope, body)
    check_body(body, raw_request.scope["route"].path, raw_request.app.state.duet.options)


async def refuse_nested(request: Request, error: Exception) -> Response:
    """Exception handler of RecursionError: what a client sent was too deep for vLLM, too."""
    refusal = unreadable(error)
    assert refusal is not None, f"{error=}"
    return await refuse(request, refusal)


async def refuse_unreadable(request: Request, error: Exception) -> Response:
    """Exception handler of Starlette's HTTPException. FastAPI raises one that says nothing if it cannot read a body."""
    assert isinstance(error, HTTPException), f"{error=}"
    refusal = unreadable(error.__cause__)
    return await (refuse(request, refusal) if refusal else http_exception_handler(request, error))


def unreadable(error: BaseException | None) -> RequestRefusedError | None:
    """The refusal of a body that raises ``error`` in Python's ``json``; None if the error is another one."""
    if isinstance(error, UnicodeDecodeError):
        value = Words(f"no text at byte {error.start} (0x{error.object[error.start]:02x})")
        return RequestRefusedError("malformed", "body", value, "JSON in UTF-8")
    if isinstance(error, RecursionError):
        expected = "fewer objects and lists in each other"
        return RequestRefusedError("malformed", "body", Words("nested too deeply"), expected)
    if isinstance(error, ValueError) and "digits" in str(error):
        expected = f"numbers of at most {sys.get_int_max_str_digits()} digits"
        return RequestRefusedError("malformed", "body", Words("JSON with a longer number"), expected)
    return None
