"""Keeps clients from the engine's own keys: only the validated ``compression`` field may set them.

The engine trusts these keys, so they are refused on every route, not only where compression is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import Request
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from duet_server.api.errors import RequestRefusedError

RESERVED_PREFIX = "duet_"


async def check_json_request(raw_request: Request) -> None:
    """vLLM's check that every JSON route depends on, and ours; installed as its dependency override."""
    await validate_json_request(raw_request)
    try:
        body = await raw_request.json()  # parsed already: Starlette keeps the result
    except ValueError:
        return  # no JSON: the route's to answer
    refuse_reserved_keys(body)


def refuse_reserved_keys(body: object) -> None:
    """Raise RequestRefusedError if a request's body reaches for a reserved key."""
    for field, keys in _engine_fields(body):
        for key, value in keys.items():
            if key.startswith(RESERVED_PREFIX):
                expected = f"no key that begins with {RESERVED_PREFIX}: use the compression field"
                raise RequestRefusedError("reserved_key", f"{field}.{key}", value, expected)


def _engine_fields(body: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a body that vLLM passes to the engine as they are."""
    if not isinstance(body, dict):
        return
    sampling_params = body.get("sampling_params")
    fields = {"vllm_xargs": body.get("vllm_xargs"), "mm_processor_kwargs": body.get("mm_processor_kwargs")}
    if isinstance(sampling_params, dict):
        fields["sampling_params.extra_args"] = sampling_params.get("extra_args")
    for field, keys in fields.items():
        if isinstance(keys, dict):
            yield field, keys
