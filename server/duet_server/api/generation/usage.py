"""``usage.compression`` in responses and in the usage chunk of streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse

_EVENT = "data: "
_NO_CHOICES = '"choices":[]'
_MESSAGE_DELTA = "event: message_delta\ndata: "


def with_usage(response: Any, usage: Mapping[str, Any] | None) -> Any:
    """A full response with its ``usage.compression``, which OpenAI's models in vLLM carry as an extra field."""
    if usage is not None and not isinstance(response, ErrorResponse):
        response.usage.compression = dict(usage)
    return response


def total_usage(usages: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The sum over prompts with the same settings; None where none of them has any."""
    present = [usage for usage in usages if usage is not None]
    if not present:
        return None
    tokens, cache = (_sum([usage[key] for usage in present]) for key in ("visual_tokens", "kv_cache"))
    reduction = round(1 - tokens["layer_average"] / tokens["encoder"], 4) if tokens["encoder"] else 0.0
    return {**present[0], "visual_tokens": tokens, "reduction": reduction, "kv_cache": cache}


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
    return f"{_EVENT}{_dump(chunk)}\n\n"


def with_message_usage(event: str, usage: Mapping[str, Any]) -> str:
    """An event of Anthropic's stream, with ``usage.compression`` if it is the one that reports all usage."""
    if not event.startswith(_MESSAGE_DELTA):
        return event
    chunk = json.loads(event.removeprefix(_MESSAGE_DELTA))
    chunk["usage"]["compression"] = dict(usage)
    return f"{_MESSAGE_DELTA}{_dump(chunk)}\n\n"


def _dump(chunk: Any) -> str:
    return json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))


def _sum(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Key by key, and in a list item by item."""
    columns = {key: [count[key] for count in counts] for key in counts[0]}
    return {
        key: [sum(items) for items in zip(*column, strict=True)] if isinstance(column[0], list) else sum(column)
        for key, column in columns.items()
    }
