"""vLLM's handler of OpenAI's Responses API, with compression."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from duet_server.api.generation.rendering import DuetRenderer
from duet_server.api.generation.schema import DuetResponsesRequest
from duet_server.api.generation.usage import with_usage


class DuetServingResponses(OpenAIServingResponses):
    """Replaces vLLM's Responses handler and copies its attributes, including stored responses."""

    online_renderer: DuetRenderer

    def __init__(self, handler: OpenAIServingResponses, renderer: DuetRenderer) -> None:
        self.__dict__.update(vars(handler))
        self.online_renderer = renderer

    async def responses_full_generator(self, request: DuetResponsesRequest, *args: Any, **kwargs: Any) -> Any:
        """Makes the full response; in a stream, vLLM sends it in the last event."""
        response = await super().responses_full_generator(request, *args, **kwargs)
        return with_usage(response, self.online_renderer.usage(request))
