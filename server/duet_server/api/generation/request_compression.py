"""The compression state of one request, from its rendering to its response."""

from __future__ import annotations

from dataclasses import dataclass, field

from duet_server.api.generation.prompt import CompressedPrompt


@dataclass(slots=True)
class RequestCompression:
    """The state that a request carries as ``request.duet``. A request and its conversion to another type share it.

    Attributes:
        dry_run: the request never reaches the engine.
        trace_id: the id of the request's trace in the engine; 0 for no trace.
        prompt: the compressed prompt, once it is rendered; None on a model without compression.
        conversations: the states of the chat completion requests into which vLLM splits a batch.
    """

    dry_run: bool = False
    trace_id: int = 0
    prompt: CompressedPrompt | None = None
    conversations: list[RequestCompression] = field(default_factory=list)

    @property
    def is_inspection(self) -> bool:
        """Whether the request only inspects compression. It is not counted, and its pictures skip the image cache.

        API and engine share this cache. The engine never sees the pictures of a dry run, and a traced picture is never
        used again.
        """
        return self.dry_run or self.trace_id > 0
