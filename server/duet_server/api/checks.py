"""Checks that compressed requests pass before they reach the engine, where it would be too late to refuse them."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.serve.utils.api_utils import get_max_tokens

from duet_server.api.errors import RequestRefusedError
from duet_server.api.prompt import has_part
from duet_server.api.schema import DuetChatCompletionRequest

_WITHOUT = "when images are compressed"


def check_request(request: DuetChatCompletionRequest) -> None:
    """Refuse what compression does not go with yet."""
    if request.prompt_logprobs is not None:
        raise RequestRefusedError("unsupported", "prompt_logprobs", request.prompt_logprobs, f"none {_WITHOUT}")
    if request.echo:  # vLLM computes prompt log probabilities for it
        raise RequestRefusedError("unsupported", "echo", request.echo, f"false {_WITHOUT}")
    if request.use_beam_search:
        raise RequestRefusedError("unsupported", "use_beam_search", request.use_beam_search, f"false {_WITHOUT}")
    for part_type in ("image_embeds", "prompt_embeds"):
        if has_part(request.messages, part_type):
            raise RequestRefusedError("unsupported", "messages", part_type, f"image_url parts only {_WITHOUT}")


def fit_max_tokens(
    request: DuetChatCompletionRequest,
    num_prompt_tokens: int,
    limit: int,
    max_model_len: int,
    defaults: dict[str, Any],
    server_max_tokens: int | None = None,
) -> None:
    """See that prompt and answer of a request that drops tokens fit one engine step.

    Its prefill is never split, and after a preemption it prefills its prompt and what it has generated at once. Where
    the client leaves the answer's length open, it is what fits; otherwise a request that does not fit is refused.

    Args:
        request: changed where it leaves the length open.
        num_prompt_tokens: tokens that enter the language model.
        limit: the engine's ``max_num_batched_tokens``.
        max_model_len: the engine's context length.
        defaults: the server's default sampling parameters.
        server_max_tokens: what the server caps every answer to, as vLLM does by its generation configuration.
    """
    room = limit - num_prompt_tokens
    if room < 1:
        expected = f"at most {limit - 1} prompt tokens with stage 2 on (--max-num-batched-tokens is {limit})"
        raise RequestRefusedError("too_long", "messages", num_prompt_tokens, expected)
    field = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    asked = vars(request)[field]  # as an attribute, max_tokens warns that OpenAI has deprecated it
    num_answer_tokens = get_max_tokens(max_model_len, asked, num_prompt_tokens, defaults, server_max_tokens)
    if num_answer_tokens <= room:
        return
    if asked is not None:
        expected = f"at most {room} with a prompt of {num_prompt_tokens} tokens and stage 2 on"
        raise RequestRefusedError("too_long", field, asked, f"{expected} (--max-num-batched-tokens is {limit})")
    request.max_completion_tokens = room
