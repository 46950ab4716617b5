"""``usage.compression`` in responses and in the usage chunk of streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

_EVENT = "data: "
_NO_CHOICES = '"choices":[]'


def with_usage(response: ChatCompletionResponse, usage: Mapping[str, Any]) -> ChatCompletionResponse:
    """A full response with its ``usage.compression``, which vLLM's models carry as an extra field."""
    response.usage.compression = dict(usage)
    return response


def with_usage_chunk(event: str, usage: Mapping[str, Any]) -> str:
    """A stream's event, with ``usage.compression`` if it is the one that reports usage, else as it is.

    That event alone has usage and no choices. vLLM builds it out of reach, so its text is read back, once a stream; an
    answer cannot be mistaken for it, because JSON escapes the quotes inside of text.
    """
    if not event.startswith(_EVENT) or _NO_CHOICES not in event:
        return event
    chunk = json.loads(event.removeprefix(_EVENT))
    if chunk.get("choices") or not chunk.get("usage"):
        return event
    chunk["usage"]["compression"] = dict(usage)
    return f"{_EVENT}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
