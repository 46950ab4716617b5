"""The exceptions for refused requests, and the one handler that counts and answers them."""

from __future__ import annotations

from typing import Literal, cast

from fastapi import Request, Response
from starlette.types import Scope
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError

from duet_server.api.body_walk import find_text, remembered_body
from duet_server.plan import SettingsError

Reason = Literal["invalid_settings", "limit", "malformed", "media", "reserved_key", "too_long", "unsupported"]

_OWN_WORDS = "duet_error"  # in the scope's state


class Refusal(Exception):  # noqa: N818 - the base class of errors
    """Refuses a request: ``parameter`` is the field, ``reason`` the label of the metric that counts refused requests.

    ``source`` is the URL of the medium that is refused, if it is one: then :func:`locate` can find the field's path.
    """

    parameter: str
    reason: Reason
    source: str | None = None


class RequestRefusedError(Refusal, VLLMValidationError):
    """Refuses a request. The client gets status 400 in OpenAI's error shape; ``param`` is the field.

    Args:
        reason: the ``reason`` label of the metric that counts refused requests.
        field: the field's path in the request's body.
        value: what the client sent.
        expected: what the server would accept; the message has it after "expected".
    """

    def __init__(self, reason: Reason, field: str, value: object, expected: str) -> None:
        self.reason = reason
        self.expected = expected
        VLLMValidationError.__init__(self, "", parameter=field, value=value)

    def __str__(self) -> str:
        # vLLM's own text would repeat the field and the value, even a very long one.
        return str(SettingsError(str(self.parameter), self.value, self.expected))


class PromptTooLongError(RequestRefusedError):
    """Refuses a prompt that stage 2 cannot prefill in one step. Clients know vLLM's words for a full context."""

    def __init__(self, field: str, num_tokens: int, limit: int) -> None:
        super().__init__("too_long", field, num_tokens, f"at most {limit} tokens with stage 2 on")
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"This model's maximum context length is {self.limit} tokens with stage 2 of compression on, because the "
            f"server's --max-num-batched-tokens is {self.limit}. However, your prompt contains {self.value} input "
            "tokens. Please reduce the length of the input prompt, or turn stage 2 off."
        )


class MediaFetchError(Refusal, VLLMUnprocessableEntityError):
    """A URL that could not be fetched. The client gets 422, as vLLM answers if a host returns 404."""

    def __init__(self, field: str, url: str) -> None:
        VLLMUnprocessableEntityError.__init__(self, "", parameter=field)
        self.reason = "media"
        self.source = url

    def __str__(self) -> str:
        return str(SettingsError(str(self.parameter), self.source, "a URL that can be fetched"))


def invalid_settings(error: SettingsError) -> RequestRefusedError:
    """The refusal of a request whose settings are invalid."""
    return RequestRefusedError("invalid_settings", error.field, error.value, error.expected)


def remember_error(scope: Scope, message: str, field: str) -> None:
    """Keep an error's words for its response. vLLM hides what looks like a file's path, even in a client's value."""
    scope.setdefault("state", {})[_OWN_WORDS] = message, field


def remembered_error(scope: Scope) -> tuple[str, str] | None:
    """The error's message and field, if it only has words of ours and of the client."""
    words: tuple[str, str] | None = scope.get("state", {}).get(_OWN_WORDS)
    return words


def settle(error: Refusal, scope: Scope) -> None:
    """Let a refusal that is about to be answered name the client's field, and keep its words."""
    locate(error, remembered_body(scope))
    remember_error(scope, str(error), error.parameter)


def locate(error: Refusal, body: object) -> None:
    """Let the refusal of a medium name its place in the client's decoded body."""
    place = find_text(body, error.source) if error.source else None
    if place is not None:
        error.parameter = str(place)


async def refuse(request: Request, error: Exception) -> Response:
    """Exception handler: count the refusal, then let vLLM answer it like its own validation errors."""
    assert isinstance(error, Refusal), f"{error=}"
    settle(error, request.scope)
    request.app.state.duet.metrics.count_rejected(error.reason)
    return cast(Response, await vllm_error_handler(request, error))
