"""Adds ``usage.compression`` to responses and to the usage chunk of streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse

_EVENT = "data: "
_NO_CHOICES = '"choices":[]'
_MESSAGE_DELTA = "event: message_delta\ndata: "


def with_usage(response: Any, usage: Mapping[str, Any] | None) -> Any:
    """Add ``usage.compression`` to a full response. vLLM's models of OpenAI's API accept it as an extra field."""
    if usage is not None and not isinstance(response, ErrorResponse):
        response.usage.compression = dict(usage)
    return response


def total_usage(usages: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The summed usage of prompts with the same settings; None if no prompt has any."""
    present = [usage for usage in usages if usage is not None]
    if not present:
        return None
    summed = {key: _sum([usage[key] for usage in present]) for key in ("visual_tokens", "by_modality", "kv_cache")}
    tokens = summed["visual_tokens"]
    reduction = round(1 - tokens["layer_average"] / tokens["encoder"], 4) if tokens["encoder"] else 0.0
    notes = list(dict.fromkeys(note for usage in present for note in usage.get("notes", ())))
    total = {**present[0], **summed, "reduction": reduction}
    return total | ({"notes": notes} if notes else {})


def with_usage_chunk(event: str, usage: Mapping[str, Any]) -> str:
    """Add ``usage.compression`` to the event of a stream that reports usage. Other events are returned unchanged.

    Only that event has usage and no choices. vLLM offers no hook where it is built, so its text is parsed, once per
    stream. Generated text cannot be mistaken for it, because JSON escapes quotes inside text.
    """
    if not event.startswith(_EVENT) or _NO_CHOICES not in event:
        return event
    chunk = json.loads(event.removeprefix(_EVENT))
    if chunk.get("choices") or not chunk.get("usage"):
        return event
    chunk["usage"]["compression"] = dict(usage)
    return f"{_EVENT}{_dump(chunk)}\n\n"


def with_message_usage(event: str, usage: Mapping[str, Any]) -> str:
    """Add ``usage.compression`` to the event of an Anthropic stream that reports the total usage."""
    if not event.startswith(_MESSAGE_DELTA):
        return event
    chunk = json.loads(event.removeprefix(_MESSAGE_DELTA))
    chunk["usage"]["compression"] = dict(usage)
    return f"{_MESSAGE_DELTA}{_dump(chunk)}\n\n"


def _dump(chunk: Any) -> str:
    return json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))


def _sum(counts: Sequence[Any]) -> Any:
    """Sum numbers; lists item by item, objects key by key."""
    if isinstance(counts[0], Mapping):
        keys = dict.fromkeys(key for count in counts for key in count)
        return {key: _sum([count[key] for count in counts if key in count]) for key in keys}
    if isinstance(counts[0], list):
        return [sum(column) for column in zip(*counts, strict=True)]
    return sum(counts)
