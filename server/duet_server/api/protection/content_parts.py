"""Checks the parts of messages before vLLM reads them: texts are strings, media has a source, and no cache keys.

vLLM would answer some of these with the words of an exception, pass over others in silence, and let a part's ``uuid``
choose the entry of a cache that all clients share.
"""

from __future__ import annotations

from typing import Any

from vllm.renderers.chat_utils import MM_PARSER_MAP

from duet_server.api.body_walk import Container, Place
from duet_server.api.errors import RequestRefusedError
from duet_server.plan.errors import MISSING

# Keys between a body and its parts, without indices: chats, tool results of Anthropic, Responses, token prompts.
_LISTS_OF_PARTS = {
    ("messages", "content"),
    ("messages", "content", "content"),
    ("input", "content"),
    ("input", "output"),
    ("content_parts",),
    ("state", "content"),
}
_PROMPTS = ("messages", "input", "prompt")
_TEXT_OR_LIST = (str | list, "a string, or a list with at least one item")
_FIELDS: dict[str, tuple[Any, str]] = {
    "messages": (list, "a list of at least one message"),
    "input": _TEXT_OR_LIST,
    "prompt": _TEXT_OR_LIST,
    "structured_outputs": (dict, "an object"),
    "tools": (list, "a list"),
}
_TEXTS = ("text", "refusal", "thinking")
# Fields that hold the source of a medium, by the part's type.
_SOURCES = {"image_url": "url", "video_url": "url", "audio_url": "url", "input_audio": "data"}
_DETAILS = ("auto", "low", "high", "original")
_URL = "a URL, or data:image/png;base64, followed by base64"
_NO_KEYS = "no such key: pictures are cached by their content (--duet-trust-uuids accepts keys of clients)"


def check_types(body: dict[str, Any]) -> None:
    """Raise RequestRefusedError if a field has not the type that vLLM's own checks take for granted."""
    for field, (types, expected) in _FIELDS.items():
        value = body.get(field)
        is_empty = value == [] and field in _PROMPTS and not body.get("prompt_embeds")
        is_absent = field not in body or (value is None and field != "messages")  # vLLM takes null for absent elsewhere
        if is_empty or not (is_absent or isinstance(value, types)):
            raise _malformed(Place() / field, value, expected)


def check_messages(place: Place, container: Container, route: str) -> None:
    """Raise RequestRefusedError if a list of messages, or of their parts, is not what the API of ``route`` defines."""
    if not isinstance(container, list):
        return
    if place.names == ("messages",):
        for i, item in enumerate(container):
            if isinstance(item, dict):
                _check_message(place / i, item)
    elif place.names in _LISTS_OF_PARTS:
        for i, item in enumerate(container):
            _check_part(place / i, item, route)


def refuse_uuids(place: Place, container: Container) -> None:
    """Raise RequestRefusedError if a client names entries of vLLM's caches of media, which all clients share."""
    if isinstance(container, dict):
        if place.names == ("features",) and container.get("mm_hashes"):
            raise RequestRefusedError("reserved_key", str(place / "mm_hashes"), container["mm_hashes"], _NO_KEYS)
        return
    for i, part in enumerate(container if place.names in _LISTS_OF_PARTS else ()):
        if isinstance(part, dict) and part.get("uuid") is not None:
            raise RequestRefusedError("reserved_key", str(place / i / "uuid"), part["uuid"], _NO_KEYS)


def _check_message(place: Place, message: dict[str, Any]) -> None:
    if isinstance(message.get("content"), dict):  # vLLM would iterate over its keys
        raise _malformed(place / "content", message["content"], "a string or a list")
    calls = message.get("tool_calls")
    if not isinstance(calls, list | None):
        raise _malformed(place / "tool_calls", calls, "a list of objects")
    for i, call in enumerate(calls or ()):
        _check_call(place / "tool_calls" / i, call)


def _check_call(place: Place, call: object) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or (function is None and call.get("type") != "custom"):
        raise _malformed(place, call, "an object with id, type and function")
    strings = [(place / key, call.get(key, MISSING)) for key in ("id", "type")]
    if isinstance(function, dict):
        strings += [(place / "function" / key, function.get(key, MISSING)) for key in ("name", "arguments")]
    for where, value in strings:
        if not isinstance(value, str) or value is MISSING:
            raise _malformed(where, value, "a string")


def _check_part(place: Place, part: object, route: str) -> None:
    if isinstance(part, dict):
        _check_texts(place, part, route)
        _check_type(place, part, route)
        _check_source(place, part)
        _check_detail(place, part)
    elif not isinstance(part, str):
        raise _malformed(place, part, "an object with a type")


def _check_texts(place: Place, part: dict[str, Any], route: str) -> None:
    if part.get("type") in ("text", "input_text", "output_text") and "text" not in part:
        raise _malformed(place / "text", MISSING, "a string")
    if part.get("type") == "text" and part["text"] is None and route.startswith("/v1/messages"):
        raise _malformed(place / "text", None, "a string")
    for key in _TEXTS:
        if not isinstance(part.get(key), str | None):
            raise _malformed(place / key, part[key], "a string")


def _check_type(place: Place, part: dict[str, Any], route: str) -> None:
    """Chats only: the models of the other routes list their types themselves."""
    part_type = part.get("type", MISSING)
    is_chat = not route.startswith(("/v1/messages", "/v1/responses", "/inference"))
    implied = part_type in (None, MISSING) and any(key in part for key in MM_PARSER_MAP)
    if is_chat and not implied and not (isinstance(part_type, str) and part_type in MM_PARSER_MAP):
        raise _malformed(place / "type", part_type, f"one of {', '.join(sorted(MM_PARSER_MAP))}")


def _check_source(place: Place, part: dict[str, Any]) -> None:
    kind = part.get("type") or next((key for key in _SOURCES if key in part), None)
    if kind == "input_image":
        _check_url(place / "image_url", part.get("image_url", MISSING))
    elif kind == "image" and "source" in part:
        source = part["source"] if isinstance(part["source"], dict) else {}
        key = "url" if source.get("type") == "url" else "data"
        _check_url(place / "source" / key, source.get(key, MISSING), "base64" if key == "data" else _URL)
    elif kind == "image":
        raise _malformed(place / "source", MISSING, "an object with type and data, or type and url")
    elif isinstance(kind, str) and kind in _SOURCES:
        holder, key = part.get(kind, MISSING), _SOURCES[kind]
        if isinstance(holder, dict):
            _check_url(place / kind / key, holder.get(key, MISSING), "base64" if key == "data" else _URL)
        elif part.get("type") is None:  # vLLM's short form
            _check_url(place / kind, holder)
        else:
            raise _malformed(place / kind, holder, f"an object with {key}")


def _check_detail(place: Place, part: dict[str, Any]) -> None:
    holder = part.get("image_url")
    place, fields = (place / "image_url", holder) if isinstance(holder, dict) else (place, part)
    if fields.get("detail", "auto") not in _DETAILS:
        raise _malformed(place / "detail", fields["detail"], f"one of {', '.join(_DETAILS)}")


def _check_url(place: Place, url: object, expected: str = _URL) -> None:
    if not isinstance(url, str) or url is MISSING or not url.strip():
        raise _malformed(place, url, expected)


def _malformed(place: Place, value: object, expected: str) -> RequestRefusedError:
    return RequestRefusedError("malformed", str(place), value, expected)
