"""Checks of compressed requests before they reach the engine. There, it would be too late to refuse them."""

from __future__ import annotations

from argparse import Namespace
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
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # in vLLM's order of precedence


def check_request(request: CompressibleRequest | Namespace, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse features that compression does not support yet."""
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
    request: CompressibleRequest | Namespace,
    num_prompt_tokens: int,
    limit: int,
    max_model_len: int,
    defaults: dict[str, Any],
    server_max_tokens: int | None = None,
) -> int:
    """The maximum number of answer tokens, if stage 2 drops tokens of the prompt.

    The prefill of such a request is never split. After a preemption, it covers the prompt and all generated tokens, so
    prompt and answer must fit one engine step. If the client asks for a longer answer, the request is refused.

    Args:
        request: the client's request.
        num_prompt_tokens: prompt tokens that enter the language model.
        limit: the engine's ``max_num_batched_tokens``.
        max_model_len: the engine's context length.
        defaults: the server's default sampling parameters.
        server_max_tokens: the server's cap on every answer, which vLLM reads from the generation configuration.
    """
    room = limit - num_prompt_tokens
    if room < 1:
        expected = f"at most {limit - 1} prompt tokens with stage 2 on (--max-num-batched-tokens is {limit})"
        raise RequestRefusedError("too_long", request.prompt_field, num_prompt_tokens, expected)
    fields = vars(request)  # getattr on max_tokens would warn that OpenAI has deprecated it
    field = next((field for field in _LENGTHS if fields.get(field) is not None), None)
    if field is None:
        return room
    # vLLM caps the length before generating, so check the capped length.
    if get_max_tokens(max_model_len, fields[field], num_prompt_tokens, defaults, server_max_tokens) > room:
        expected = f"at most {room} with a prompt of {num_prompt_tokens} tokens and stage 2 on"
        raise RequestRefusedError("too_long", field, fields[field], f"{expected} (--max-num-batched-tokens is {limit})")
    return room
