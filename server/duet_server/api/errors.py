"""The refusals that a client sees, and the one place that counts and answers them."""

from __future__ import annotations

from typing import Literal, cast

from fastapi import Request, Response
from vllm.entrypoints.serve.exception_handling.handlers.vllm_error import vllm_error_handler
from vllm.exceptions import VLLMValidationError

from duet_server.plan import SettingsError

Reason = Literal["invalid_settings", "limit", "media", "reserved_key", "too_long", "unsupported"]


class RequestRefusedError(VLLMValidationError):
    """A request that is answered with 400 in OpenAI's error shape, ``param`` naming the field.

    Args:
        reason: the label under which it is counted.
        field: the field's path in the request's body.
        value: what the client sent.
        expected: what would be accepted, to be read after "expected".
    """

    def __init__(self, reason: Reason, field: str, value: object, expected: str) -> None:
        self.reason: Reason = reason
        self.expected = expected
        self.sentence = str(SettingsError(field, value, expected))
        super().__init__(self.sentence, parameter=field, value=value)

    def __str__(self) -> str:
        return self.sentence  # vLLM's own text would repeat the field and the value, however long


def invalid_settings(error: SettingsError) -> RequestRefusedError:
    return RequestRefusedError("invalid_settings", error.field, error.value, error.expected)


async def refuse(request: Request, error: Exception) -> Response:
    """Exception handler: count the refusal, then let vLLM answer as it does for its own validation errors."""
    assert isinstance(error, RequestRefusedError), f"{error=}"
    request.app.state.duet.metrics.count_rejected(error.reason)
    return cast(Response, await vllm_error_handler(request, error))
