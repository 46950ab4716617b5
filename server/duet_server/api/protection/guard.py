"""Checks the body of every JSON route: no reserved keys, no compression on other routes, not too many answers.

The engine trusts keys that begin with ``duet_``: only the validated ``compression`` field may set them. So they are
refused on every route whose body can carry them, not only on routes with compression.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pybase64
from fastapi import Request
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from duet_server.api.errors import RequestRefusedError

RESERVED_PREFIX = "duet_"
# vLLM passes these to the engine unchecked. They occur at any depth, because batches and prompts nest bodies.
_ENGINE_FIELDS = ("vllm_xargs", "mm_processor_kwargs", "extra_args")
_FEATURES = ("kwargs_data", "mm_metadata")  # of /inference/v1/generate: processed images, as keys and tensors in base64
_NUM_ANSWERS = ("n", "best_of")
_CONTAINERS = (dict, list)  # the types that json creates
_COMPRESSING_ROUTES = {
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/compression/plan",
    "/v1/compression/preview",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
}


async def check_json_request(raw_request: Request) -> None:
    """vLLM's check of every JSON route, then ours. The plugin installs it as the dependency override of vLLM's."""
    await validate_json_request(raw_request)
    try:
        body = await raw_request.json()  # already parsed: Starlette keeps the result
    except ValueError:
        return  # not JSON: the route answers that
    refuse_reserved_keys(body)
    refuse_compression_on_other_routes(body, raw_request.scope["route"].path)
    refuse_many_answers(body, raw_request.app.state.duet.options.max_n)


def refuse_reserved_keys(body: object) -> None:
    """Raise RequestRefusedError if a request's body sets a reserved key."""
    for above, key, value in _entries(body):
        if above.in_engine_field and key.startswith(RESERVED_PREFIX):
            raise _reserved(_Path(above, key), value)
        if key in _FEATURES and _has_reserved_features(value):
            raise _reserved(_Path(above, key), value)


def refuse_compression_on_other_routes(body: object, path: str) -> None:
    """Raise RequestRefusedError if a body asks for compression on a route without it. ``path`` is the route's."""
    if not isinstance(body, dict) or body.get("compression") in (None, "off"):
        return
    if path in _COMPRESSING_ROUTES or (path == "/invocations" and "messages" in body):
        return
    raise RequestRefusedError("unsupported", "compression", body["compression"], f"none: {path} does not compress")


def refuse_many_answers(body: object, max_n: int | None) -> None:
    """Raise RequestRefusedError if a request asks for more than ``max_n`` answers to a prompt."""
    sampling_params = body.get("sampling_params") if isinstance(body, Mapping) else None
    for prefix, fields in (("", body), ("sampling_params.", sampling_params)):
        for name in _NUM_ANSWERS:
            value = fields.get(name) if isinstance(fields, Mapping) else None
            if max_n is not None and _as_number(value) > max_n:
                raise RequestRefusedError("limit", prefix + name, value, f"at most {max_n}")


class _Path:
    """A key and the keys above it, as a linked list: a deep body has as many paths as objects."""

    __slots__ = ("above", "in_engine_field", "key")

    def __init__(self, above: _Path | None = None, key: str = "") -> None:
        self.above = above
        self.key = key
        self.in_engine_field: bool = key in _ENGINE_FIELDS or (above is not None and above.in_engine_field)

    def __str__(self) -> str:
        keys, path = [], self
        while path.above is not None:
            keys.append(path.key)
            path = path.above
        return ".".join(reversed(keys))


def _entries(body: object) -> Iterator[tuple[_Path, str, Any]]:
    """Every key and value of the objects in a body, with the path above. Without recursion, so at any depth."""
    pending: list[tuple[_Path, object]] = [(_Path(), body)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                yield path, key, item
                if item and type(item) in _CONTAINERS:
                    pending.append((_Path(path, key), item))
        elif isinstance(value, list):
            pending += [(path, item) for item in value if type(item) in _CONTAINERS and item]


def _has_reserved_features(value: object) -> bool:
    lists = [items for items in value.values() if isinstance(items, list)] if isinstance(value, dict) else []
    texts = [item for items in lists for item in items if isinstance(item, str)]
    return any(RESERVED_PREFIX.encode() in _decoded(text) for text in texts)


def _decoded(text: str) -> bytes:
    try:
        return pybase64.b64decode(text)
    except ValueError:
        return b""  # the route answers that


def _reserved(path: _Path, value: object) -> RequestRefusedError:
    expected = f"no key that begins with {RESERVED_PREFIX}: use the compression field"
    return RequestRefusedError("reserved_key", str(path), value, expected)


def _as_number(value: object) -> float:
    """The value as a number. The routes accept numbers in strings, so this does, too."""
    try:
        return float(value) if isinstance(value, str | int | float) else 0.0
    except OverflowError:
        return math.inf
    except ValueError:
        return 0.0
