"""The exception for refused requests, and the one handler that counts and answers them."""

from __future__ import annotations

from typing import Literal, cast

from fastapi import Request, Response
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMValidationError

from duet_server.plan import SettingsError

Reason = Literal["invalid_settings", "limit", "media", "reserved_key", "too_long", "unsupported"]


class RequestRefusedError(VLLMValidationError):
    """Refuses a request. The client gets status 400 in OpenAI's error shape; ``param`` is the field.

    Args:
        reason: the ``reason`` label of the metric that counts refused requests.
        field: the field's path in the request's body.
        value: what the client sent.
        expected: what the server would accept; the message has it after "expected".
    """

    def __init__(self, reason: Reason, field: str, value: object, expected: str) -> None:
        self.reason: Reason = reason
        self.expected = expected
        self.sentence = str(SettingsError(field, value, expected))
        super().__init__(self.sentence, parameter=field, value=value)

    def __str__(self) -> str:
        return self.sentence  # vLLM's own text would repeat the field and the value, even a very long one


def invalid_settings(error: SettingsError) -> RequestRefusedError:
    """The refusal of a request whose settings are invalid."""
    return RequestRefusedError("invalid_settings", error.field, error.value, error.expected)


async def refuse(request: Request, error: Exception) -> Response:
    """Exception handler: count the refusal, then let vLLM answer it like its own validation errors."""
    assert isinstance(error, RequestRefusedError), f"{error=}"
    request.app.state.duet.metrics.count_rejected(error.reason)
    return cast(Response, await vllm_error_handler(request, error))
