"""Checks the body of every JSON route before a model reads it.

The engine trusts keys that begin with ``duet_``: only the validated ``compression`` field may set them. So they are
refused on every route whose body can carry them, not only on routes with compression.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import pybase64
import regex

from duet_server.api.body_walk import ENGINE_FIELDS, Container, Place, items_of, walk
from duet_server.api.errors import RequestRefusedError
from duet_server.api.protection.content_parts import check_messages, check_types, refuse_uuids
from duet_server.plan.resolve import FIELD

RESERVED_PREFIX = "duet_"
_LETTERS = frozenset(FIELD)
_FEATURES = ("kwargs_data", "mm_metadata")  # of /inference/v1/generate: processed images, as keys and tensors in base64
_NUM_ANSWERS = ("n", "best_of")
_HALF_OF_A_PAIR = regex.compile(r"[\ud800-\udfff]")
# Objects that OpenAI's Python client or vLLM would unpack, so that a field in them was meant for the body.
_UNPACKED = ("extra_body", *ENGINE_FIELDS)
_COMPRESSING_ROUTES = {
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/compression/plan",
    "/v1/compression/preview",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
}


def check_body(body: object, route: str, options: Any) -> None:
    """Raise RequestRefusedError if no route, or not this one, may be sent this body.

    Args:
        body: as JSON decodes it.
        route: the route's path.
        options: DUET's options.
    """
    if isinstance(body, dict):
        refuse_near_misses(body)
        refuse_compression_on_other_routes(body, route)
        refuse_many_answers(body, options.max_n)
    for place, container in walk(body):
        refuse_half_characters(place, container)
        if isinstance(container, dict):
            refuse_reserved_keys(place, container)
        if not options.trust_uuids:
            refuse_uuids(place, container)
        check_messages(place, container, route)
    if isinstance(body, dict):
        check_types(body)


def refuse_reserved_keys(place: Place, container: dict[str, Any]) -> None:
    """Raise RequestRefusedError if an object sets a reserved key."""
    for key, value in container.items():
        if place.in_engine_field and key.startswith(RESERVED_PREFIX):
            raise _reserved(place / key, value)
        if key in _FEATURES and _has_reserved_features(value):
            raise _reserved(place / key, value)


def refuse_half_characters(place: Place, container: Container) -> None:
    """Raise RequestRefusedError if a text has half a surrogate pair: JSON can escape it, but no tokenizer reads it."""
    for key, value in items_of(container):
        for text in (key, value):
            if isinstance(text, str) and not text.isascii() and (half := _HALF_OF_A_PAIR.search(text)):
                expected = f"whole characters: \\u{ord(half.group()):x} is half a surrogate pair"
                raise RequestRefusedError("malformed", str(place / key), text, expected)


def refuse_near_misses(body: dict[str, Any]) -> None:
    """Raise RequestRefusedError if the compression field is misspelled, or one level too deep.

    vLLM passes over unknown fields, so the request would be answered without compression.
    """
    for key, value in body.items():
        may_be_near = abs(len(key) - len(FIELD)) <= 1 and len(_LETTERS.intersection(key.lower())) >= len(_LETTERS) - 1
        if may_be_near and key != FIELD and get_close_matches(key.lower(), [FIELD], cutoff=0.93):
            raise RequestRefusedError("unsupported", key, value, f"the name {FIELD}")
    for key in _UNPACKED:
        below = body.get(key)
        if isinstance(below, dict) and below.get(FIELD) is not None:
            expected = f"{FIELD} in the body itself, beside model"
            raise RequestRefusedError("unsupported", f"{key}.{FIELD}", below[FIELD], expected)


def refuse_compression_on_other_routes(body: dict[str, Any], path: str) -> None:
    """Raise RequestRefusedError if a body asks for compression on a route without it. ``path`` is the route's."""
    if body.get(FIELD) in (None, "off"):
        return
    if path in _COMPRESSING_ROUTES or (path == "/invocations" and "messages" in body):
        return
    raise RequestRefusedError("unsupported", FIELD, body[FIELD], f"none: {path} does not compress")


def refuse_many_answers(body: dict[str, Any], max_n: int | None) -> None:
    """Raise RequestRefusedError if a request asks for more than ``max_n`` answers to a prompt."""
    sampling_params = body.get("sampling_params")
    for prefix, fields in (("", body), ("sampling_params.", sampling_params)):
        for name in _NUM_ANSWERS:
            value = fields.get(name) if isinstance(fields, Mapping) else None
            if max_n is not None and _as_number(value) > max_n:
                raise RequestRefusedError("limit", prefix + name, value, f"at most {max_n}")


def _has_reserved_features(value: object) -> bool:
    lists = [items for items in value.values() if isinstance(items, list)] if isinstance(value, dict) else []
    texts = [item for items in lists for item in items if isinstance(item, str)]
    return any(RESERVED_PREFIX.encode() in _decoded(text) for text in texts)


def _decoded(text: str) -> bytes:
    try:
        return pybase64.b64decode(text)
    except ValueError:
        return b""  # the route answers that


def _reserved(place: Place, value: object) -> RequestRefusedError:
    expected = f"no key that begins with {RESERVED_PREFIX}: use the compression field"
    return RequestRefusedError("reserved_key", str(place), value, expected)


def _as_number(value: object) -> float:
    """The value as a number. The routes accept numbers in strings, so this does, too."""
    try:
        return float(value) if isinstance(value, str | int | float) else 0.0
    except OverflowError:
        return math.inf
    except ValueError:
        return 0.0
