"""Checks that compressed requests pass before they reach the engine, where it would be too late to refuse them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.serve.utils.api_utils import get_max_tokens

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.prompt import has_part
from duet_server.api.generation.schema import CompressibleRequest

_CONDITION = "when images are compressed"
_UNSUPPORTED = {
    "prompt_logprobs": "none",
    "echo": "false",  # vLLM computes prompt log probabilities for it
    "use_beam_search": "false",
}
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # in the order in which vLLM heeds them


def check_request(request: CompressibleRequest, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what compression does not go with yet."""
    for field, expected in _UNSUPPORTED.items():
        value = getattr(request, field, None)
        if value is not None and value is not False:
            raise RequestRefusedError("unsupported", field, value, f"{expected} {_CONDITION}")
    for part_type in ("image_embeds", "prompt_embeds"):
        if has_part(messages, part_type):
            raise RequestRefusedError(
                "unsupported", request.prompt_field, part_type, f"image_url parts only {_CONDITION}"
            )


def room_for_answer(
    request: CompressibleRequest,
    num_prompt_tokens: int,
    limit: int,
    max_model_len: int,
    defaults: dict[str, Any],
    server_max_tokens: int | None = None,
) -> int:
    """Tokens that the answer of a request that drops tokens may have: they must fit one engine step with the prompt.

    Its prefill is never split, and after a preemption it prefills its prompt and what it has generated at once. A
    longer answer that the client has asked for is refused.

    Args:
        request: the client's.
        num_prompt_tokens: tokens that enter the language model.
        limit: the engine's ``max_num_batched_tokens``.
        max_model_len: the engine's context length.
        defaults: the server's default sampling parameters.
        server_max_tokens: what the server caps every answer to, as vLLM does by its generation configuration.
    """
    room = limit - num_prompt_tokens
    if room < 1:
        expected = f"at most {limit - 1} prompt tokens with stage 2 on (--max-num-batched-tokens is {limit})"
        raise RequestRefusedError("too_long", request.prompt_field, num_prompt_tokens, expected)
    fields = vars(request)  # as an attribute, max_tokens warns that OpenAI has deprecated it
    field = next((field for field in _LENGTHS if fields.get(field) is not None), None)
    if field is None:
        return room
    # What vLLM would cut anyway is no reason to refuse.
    if get_max_tokens(max_model_len, fields[field], num_prompt_tokens, defaults, server_max_tokens) > room:
        expected = f"at most {room} with a prompt of {num_prompt_tokens} tokens and stage 2 on"
        raise RequestRefusedError("too_long", field, fields[field], f"{expected} (--max-num-batched-tokens is {limit})")
    return room
