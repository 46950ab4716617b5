"""vLLM's Responses API with compression."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.rendering import DuetRenderer
from duet_server.api.generation.schema import DuetResponsesRequest
from duet_server.api.generation.usage import with_usage


class DuetServingResponses(OpenAIServingResponses):
    """Takes the place of the handler that vLLM has set up, and its settings and stored responses over."""

    online_renderer: DuetRenderer

    def __init__(self, handler: OpenAIServingResponses, renderer: DuetRenderer) -> None:
        self.__dict__.update(vars(handler))
        self.online_renderer = renderer

    async def responses_full_generator(self, request: DuetResponsesRequest, *args: Any, **kwargs: Any) -> Any:
        """Makes the response, and of a stream the last event's."""
        response = await super().responses_full_generator(request, *args, **kwargs)
        return with_usage(response, self.online_renderer.usage(request))

    async def _render_next_turn(self, request: DuetResponsesRequest, messages: list[Any]) -> Any:
        """After a built-in tool's call vLLM goes on with the first prompt's sampling parameters, and so its rows."""
        if request.duet.prompt is not None and request.duet.prompt.drops:
            raise RequestRefusedError("unsupported", "tools", "a built-in tool", "none with stage 2 on")
        return await super()._render_next_turn(request, messages)
