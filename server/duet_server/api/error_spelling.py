"""One spelling of errors: they name the field that the client sent, as the client sent it.

vLLM's errors come from many places. Some name a field that vLLM made of the client's, some list the branches of a
pydantic union, and some have a Python object's words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any

import regex as re
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

from duet_server.api.body_walk import path_of, remembered_body
from duet_server.api.error_answers import RewrittenErrors
from duet_server.api.errors import RequestRefusedError, remember_error, remembered_error
from duet_server.plan import SettingsError
from duet_server.plan.errors import MISSING, Words

logger = init_logger(f"vllm.{__name__}")

Error = Mapping[str, Any]  # one of pydantic's
_Found = tuple[list[str | int], Error]  # the keys of its place, and the error

CONTEXT_LENGTH_CODE = "context_length_exceeded"  # OpenAI's; clients shorten the prompt or change the model on it
_ERROR_EVENT = b'data: {"error":'
_VLLM_SUFFIX = re.compile(r" \((parameter|value)=.*\)$", re.DOTALL)
_SUBJECT = re.compile(r"`?([\w ]{1,30}?)`?(=| must | should | is | cannot )")
_CONTEXT_LENGTH = re.compile(r"maximum context length")
# Names of one field on different routes, in the order in which vLLM reads them.
_NAMES_OF_A_FIELD = (
    ("max_completion_tokens", "max_tokens", "max_output_tokens"),
    ("top_logprobs", "logprobs"),
    ("previous_response_id", "response_id"),
)
_PROMPT_FIELDS = ("messages", "input", "prompt", "content_parts")
# vLLM's names, no client's
_PARTS_OF_A_PROMPT = ("image", "video", "audio", "input", "input_text", "input_tokens", "type")
_PLAIN_WORDS = {
    "a valid dictionary": "an object",
    "a valid list": "a list",
    "iterable": "a list",
    "a valid string": "a string",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid dictionary or object to extract fields from": "an object",
}


class ErrorSpelling:
    """ASGI middleware: rewrites vLLM's error bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})
            send = RewrittenErrors(partial(_send_event, scope, send), partial(spelled, scope)).send
        await self.app(scope, receive, send)


async def _send_event(scope: Scope, send: Send, message: Message) -> None:
    """Send a message; an error in a stream of events is rewritten as other errors are."""
    body = message.get("body", b"")
    if body.startswith(_ERROR_EVENT):
        error, end = body[len(b"data: ") :].split(b"\n", 1)
        message = {**message, "body": b"data: " + spelled(scope, HTTPStatus.BAD_REQUEST, error) + b"\n" + end}
    await send(message)


def spelled(scope: Scope, status: int, body: bytes) -> bytes:
    """The body to send instead of an error response's body."""
    try:
        content = json.loads(body)
    except ValueError:
        return body
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return body
    message, param = remembered_error(scope) or in_clients_words(
        error["message"], error.get("param"), remembered_body(scope)
    )
    if error.get("type") == HTTPStatus.BAD_REQUEST.phrase:
        error["type"] = "BadRequestError"
    error["message"] = message
    if param is not None:
        error["param"] = param
    if scope["path"].startswith("/v1/messages"):
        content["type"] = "error"  # Anthropic's shape has it
    if "code" in error and _CONTEXT_LENGTH.search(message):
        error["code"] = CONTEXT_LENGTH_CODE
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def in_clients_words(message: str, param: str | None, sent: object) -> tuple[str, str | None]:
    """vLLM's message and the field's name, both with the name that the client used in its decoded body ``sent``."""
    message = _VLLM_SUFFIX.sub("", message)
    if not isinstance(sent, dict):
        return message, param
    if param is None:
        param = "input" if _CONTEXT_LENGTH.search(message) else _subject(message, sent)
    for names in _NAMES_OF_A_FIELD:
        if param in names:
            used = next((name for name in names if sent.get(name) is not None), param)
            return re.sub(rf"\b{param}\b", used, message), used
    if param in _PARTS_OF_A_PROMPT:
        param = next((name for name in _PROMPT_FIELDS if name in sent), param)
    return message, param


def _subject(message: str, sent: Mapping[str, Any]) -> str | None:
    """The field that a message is about: its subject, or else the first field in it that the client sent."""
    subject = _SUBJECT.match(message)
    name = subject.group(1).lower().replace(" ", "_") if subject else ""
    if name in sent or any(name in names for names in _NAMES_OF_A_FIELD):
        return name
    places = {
        field: re.search(rf"\b{re.escape(field).replace('_', '[_ ]')}\b", message) for field in sent if "_" in field
    }
    found = {field: place.start() for field, place in places.items() if place}
    return min(found, key=found.__getitem__, default=None)


async def refuse_invalid_body(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: a body that does not fit the route's model. Names the one field that is most to blame."""
    assert isinstance(error, RequestValidationError), f"{error=}"
    request.app.state.duet.metrics.count_rejected("malformed")
    field, message = blame(error.errors(), error.body)
    remember_error(request.scope, message, field)
    answer = create_error_response(message, param=field)
    return JSONResponse(answer.model_dump(), HTTPStatus.BAD_REQUEST)


async def refuse_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Exception handler: a request that a handler of vLLM could not convert to another of its models."""
    assert isinstance(error, ValidationError), f"{error=}"
    invalid = RequestValidationError(error.errors(), body=remembered_body(request.scope))
    return await refuse_invalid_body(request, invalid)


def invalid_part(error: ValidationError, field: str) -> RequestRefusedError:
    """The refusal of a part that vLLM checks only when it renders a prompt. ``field`` holds the prompt."""
    return RequestRefusedError(
        "malformed", field, Words(f"malformed ({blame(error.errors(), None)[1]})"), "valid parts"
    )


async def refuse_wrong_type(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of TypeError, which vLLM would answer with Python's words."""
    logger.warning("A request ended in a TypeError.", exc_info=error)
    request.app.state.duet.metrics.count_rejected("malformed")
    expected = "values of the types that /openapi.json shows"
    answer = create_error_response(str(SettingsError("body", Words("malformed"), expected)), param="body")
    return JSONResponse(answer.model_dump(), HTTPStatus.BAD_REQUEST)


def blame(errors: Sequence[Error], body: object) -> tuple[str, str]:
    """The field to blame and a sentence about it, from pydantic's errors about ``body``.

    A union has errors of every branch. The client meant one whose types are those of the body; among several, the one
    with the fewest errors, then the one that understood the body to the greatest depth.

    Args:
        errors: pydantic's ``errors()``.
        body: what the client sent.
    """
    branches: dict[tuple[Any, ...], list[_Found]] = {}
    for error in errors:
        keys, branch = _split(error, body)
        branches.setdefault(branch, []).append((keys, error))
    meant = _meant(list(branches.values()))
    fewest = min(map(len, meant))
    likely = [min(found, key=_speaks_for_another) for found in meant if len(found) == fewest]
    depth = max(len(keys) for keys, _ in likely)
    keys = next(keys for keys, _ in likely if len(keys) == depth)
    kinds = {error["type"] for other, error in likely if other == keys}
    every = [found for branch in meant for found in branch]
    blamed = [error for other, error in every if other == keys and error["type"] in kinds]
    field = path_of(keys) or "body"
    return _field_of(blamed[0]) or field, _sentence(field, blamed)


def _meant(branches: list[list[_Found]]) -> list[list[_Found]]:
    """The branches without an error that speaks for another branch, unless these understood less of the body."""
    meant = [found for found in branches if not any(map(_speaks_for_another, found))]
    foreign = [found for branch in branches for found in branch if _speaks_for_another(found)]
    depth = max((len(keys) for found in meant for keys, _ in found), default=-1)
    return meant if depth >= max((len(keys) for keys, _ in foreign), default=0) else branches


def _speaks_for_another(found: _Found) -> bool:
    """Whether an error says that the client meant another branch: another type, or a body of another kind."""
    keys, error = found
    return not keys or error["type"] == "literal_error" or (error["type"] == "missing" and len(keys) == 1)


def _split(error: Error, body: object) -> tuple[list[str | int], tuple[Any, ...]]:
    """The keys of an error's ``loc`` that lead through the body, and the rest, which names branches of unions."""
    keys: list[str | int] = []
    branch: list[Any] = []
    value: Any = body
    loc = error["loc"]
    for i, key in enumerate(loc[1:] if loc[:1] == ("body",) else loc):
        is_last = i == len(loc) - 1 - (loc[:1] == ("body",))
        if (isinstance(value, Mapping) and key in value) or (isinstance(value, list) and key in range(len(value))):
            value = value[key]
            keys.append(key)
        elif is_last and error["type"] == "missing":
            keys.append(key)
        else:
            branch.append(key)
    return keys, tuple(branch)


def _field_of(error: Error) -> str | None:
    cause = error.get("ctx", {}).get("error")
    return cause.parameter if isinstance(cause, VLLMValidationError) else None


def _sentence(field: str, errors: Sequence[Error]) -> str:
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if first["type"] == "json_invalid":
        found = Words(f"no JSON: {cause} at character {first['loc'][-1]}")
        return str(SettingsError(field, found, "a JSON object"))
    if first["type"] in ("value_error", "assertion_error"):
        return str(_VLLM_SUFFIX.sub("", str(cause)))
    value = MISSING if first["type"] == "missing" else first.get("input")
    return str(SettingsError(field, value, " or ".join(dict.fromkeys(map(_expected, errors)))))


def _expected(error: Error) -> str:
    """What pydantic expected, in plain words."""
    if error["type"] == "missing":
        return "a value"
    if error["type"] == "too_short":
        return f"at least {error['ctx']['min_length']} of them"
    words = str(error["msg"]).removeprefix("Input should be ").split(", unable to")[0]
    return _PLAIN_WORDS.get(words, words[:1].lower() + words[1:])
