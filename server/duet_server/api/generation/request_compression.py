"""What compression does to one request, from its rendering to its answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from duet_server.api.generation.prompt import CompressedPrompt

if TYPE_CHECKING:
    from duet_server.api.generation.schema import CompressibleRequest


@dataclass(slots=True)
class RequestCompression:
    """The state that a request carries as ``request.duet``; several requests made of one may share it.

    Attributes:
        dry_run: nothing of the request will reach the engine.
        trace_id: what the engine notes its choices under; 0 for no notes.
        prompt: what compression makes of the prompt, once it is rendered; None on a model without compression.
        room: tokens that the answer may have, if the prefill may not be split: both must fit one engine step.
        conversations: the chat completions that were made of a batch.
    """

    dry_run: bool = False
    trace_id: int = 0
    prompt: CompressedPrompt | None = None
    room: int | None = None
    conversations: list[CompressibleRequest] = field(default_factory=list)

    @property
    def is_inspection(self) -> bool:
        """Whether the request only shows something. It is not counted, and its pictures enter no cache.

        The engine shares that cache: pictures of a dry run never get there, and a traced one is never asked for again.
        """
        return self.dry_run or self.trace_id > 0

    def limit_answer(self, max_tokens: int) -> int:
        """The tokens that the answer may have."""
        return max_tokens if self.room is None else min(max_tokens, self.room)
