"""vLLM's handler of Anthropic's Messages API, with compression."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesResponse
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

from duet_server.api.errors import Refusal, settle
from duet_server.api.generation.schema import (
    DuetAnthropicUsage,
    DuetChatCompletionRequest,
    DuetCountTokensRequest,
    DuetMessagesRequest,
    DuetMessagesResponse,
    with_compression_field,
)
from duet_server.api.generation.serving_chat import DuetServingChat
from duet_server.api.generation.usage import with_message_usage


class DuetServingMessages(DuetServingChat, AnthropicServingMessages):
    """Replaces vLLM's Messages handler and copies its attributes."""

    @classmethod
    def to_chat_completion_request(
        cls, request: DuetMessagesRequest | DuetCountTokensRequest, **kwargs: Any
    ) -> DuetChatCompletionRequest:
        """vLLM's conversion, with ``compression``. ``max_tokens`` stays in the field that the client used."""
        vllm_chat = super().to_chat_completion_request(request, **kwargs)
        chat = with_compression_field(vllm_chat, compression=request.compression, max_completion_tokens=None)
        chat.share_duet(request)
        chat.duet.dry_run = isinstance(request, DuetCountTokensRequest)
        return chat

    async def create_messages(self, request: DuetMessagesRequest, raw_request: Request | None = None) -> Any:
        answer = await self._answer_refusals(super().create_messages(request, raw_request), raw_request)
        usage = self.online_renderer.usage(request)
        if usage is None:
            return answer
        if isinstance(answer, AnthropicMessagesResponse):
            own_usage = DuetAnthropicUsage(**vars(answer.usage), compression=usage)
            return DuetMessagesResponse.model_construct(**{**vars(answer), "usage": own_usage})
        return _stream_with_usage(answer, usage) if isinstance(answer, AsyncGenerator) else answer

    async def count_tokens(self, request: DuetCountTokensRequest, raw_request: Request | None = None) -> Any:
        """Count the tokens that enter the language model, as a response's ``usage`` does."""
        return await self._answer_refusals(super().count_tokens(request, raw_request), raw_request)

    async def _answer_refusals(self, answer: Any, raw_request: Request | None) -> Any:
        """Turn refusals into error responses. vLLM's route would log an exception as a failure of the server."""
        try:
            return await answer
        except Refusal as error:
            settle(error, raw_request.scope if raw_request else {})
            self.online_renderer.metrics.count_rejected(error.reason)
            return self.create_error_response(error)


async def _stream_with_usage(events: AsyncGenerator[str, None], usage: dict[str, Any]) -> AsyncGenerator[str, None]:
    async for event in events:
        yield with_message_usage(event, usage)
