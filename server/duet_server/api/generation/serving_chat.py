"""vLLM's handlers of chat completions, with compression."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from duet_server.api.generation.prompt import CompressedPrompt
from duet_server.api.generation.rendering import DuetRenderer
from duet_server.api.generation.schema import (
    DuetBatchChatCompletionRequest,
    DuetChatCompletionRequest,
    with_compression_field,
)
from duet_server.api.generation.usage import total_usage, with_usage, with_usage_chunk
from duet_server.api.served_model import ServedModel


class DuetServingChat(OpenAIServingChat):
    """Replaces vLLM's chat handler and copies its attributes.

    Args:
        handler: vLLM's own ``OpenAIServingChat``, or in a subclass the vLLM handler that the subclass extends.
        renderer: fills the fields that the engine reads.
    """

    online_renderer: DuetRenderer

    def __init__(self, handler: OpenAIServingChat, renderer: DuetRenderer) -> None:
        self.__dict__.update(vars(handler))
        self.online_renderer = renderer

    @property
    def served(self) -> ServedModel:
        return self.online_renderer.served

    async def create_chat_completion(self, request: ChatCompletionRequest, raw_request: Request | None = None) -> Any:
        return await super().create_chat_completion(with_compression_field(request), raw_request)

    async def plan_chat(self, request: DuetChatCompletionRequest) -> CompressedPrompt | ErrorResponse:
        """Compress the request's prompt without sending anything to the engine.

        Raises:
            RequestRefusedError: if the request itself would be refused, or on a model without compression.
        """
        error = await self._check_model(request)
        result = error or await self.online_renderer.render_chat(request, skip_mm_cache=True)
        if isinstance(result, ErrorResponse):
            return result
        if request.duet.prompt is None:
            raise self.served.refuse_prompt()
        return request.duet.prompt

    async def chat_completion_full_generator(
        self, request: DuetChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> Any:
        response = await super().chat_completion_full_generator(request, *args, **kwargs)
        return with_usage(response, self.online_renderer.usage(request))

    async def chat_completion_stream_generator(
        self, request: DuetChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        usage = self.online_renderer.usage(request)
        async for event in super().chat_completion_stream_generator(request, *args, **kwargs):
            yield event if usage is None else with_usage_chunk(event, usage)


class DuetServingChatBatch(DuetServingChat, OpenAIServingChatBatch):
    """Several conversations in one request. All use its settings, and their usage is summed."""

    async def chat_completion_full_generator_batch(
        self, request: DuetBatchChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> Any:
        response = await super().chat_completion_full_generator_batch(request, *args, **kwargs)
        usages = [self.online_renderer.usage(request, state) for state in request.duet.conversations]
        return with_usage(response, total_usage(usages))
