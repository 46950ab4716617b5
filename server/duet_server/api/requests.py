"""The other routes' requests with the ``compression`` field, and the answers that vLLM's models have no room for it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import PrivateAttr
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
    AnthropicUsage,
)
from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from duet_server.api.schema import CompressibleRequest, DuetChatCompletionRequest


def with_compression_field(request: ChatCompletionRequest, **fields: Any) -> DuetChatCompletionRequest:
    """A chat completion that vLLM has validated: ``compression`` is an extra field of it, or one of ``fields``."""
    if isinstance(request, DuetChatCompletionRequest):
        return request
    values = {**vars(request), **(request.model_extra or {}), **fields}
    return DuetChatCompletionRequest.model_construct(request.model_fields_set, **values)


class DuetBatchChatCompletionRequest(CompressibleRequest, BatchChatCompletionRequest):
    """vLLM's request of several conversations with the `compression` field."""

    _conversations: list[DuetChatCompletionRequest] = PrivateAttr(default_factory=list)
    """All that were made of it."""

    def to_chat_completion_request(self, messages: list[Any]) -> DuetChatCompletionRequest:
        conversation = with_compression_field(super().to_chat_completion_request(messages))
        self._conversations.append(conversation)
        return conversation


class DuetResponsesRequest(CompressibleRequest, ResponsesRequest):
    """vLLM's Responses request with the `compression` field."""

    prompt_field: ClassVar[str] = "input"


class DuetMessagesRequest(CompressibleRequest, AnthropicMessagesRequest):
    """vLLM's Messages request with the `compression` field."""

    _chat: DuetChatCompletionRequest | None = PrivateAttr(default=None)
    """The chat completion that vLLM makes of it."""


class DuetCountTokensRequest(CompressibleRequest, AnthropicCountTokensRequest):
    """vLLM's request to count a prompt's tokens with the `compression` field."""


class DuetAnthropicUsage(AnthropicUsage):
    compression: dict[str, Any] | None = None


class DuetMessagesResponse(AnthropicMessagesResponse):
    """vLLM's Messages response with `usage.compression`."""

    usage: DuetAnthropicUsage | None = None
