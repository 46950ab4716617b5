"""Checks of compressed requests before they reach the engine. There, it would be too late to refuse them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import envs

from duet_server.api.errors import PromptTooLongError, RequestRefusedError
from duet_server.api.generation.prompt import CompressedPrompt, find_part
from duet_server.api.generation.schema import CompressibleRequest

_CONDITION = "when images are compressed"
_UNSUPPORTED = {
    "prompt_logprobs": "none",
    "echo": "false",  # vLLM computes prompt log probabilities for it
    "use_beam_search": "false",
}


def check_request(request: CompressibleRequest | Namespace, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse features that compression does not support yet."""
    for field, expected in _UNSUPPORTED.items():
        value = getattr(request, field, None)
        if value is not None and value is not False:
            raise RequestRefusedError("unsupported", field, value, f"{expected} {_CONDITION}")
    for part_type in ("image_embeds", "prompt_embeds"):
        part = find_part(messages, part_type)
        if part is not None:
            value = part.get(part_type)
            error = RequestRefusedError("unsupported", request.prompt_field, value, f"images only {_CONDITION}")
            error.source = value if isinstance(value, str) else None
            raise error


def check_stage2(request: CompressibleRequest | Namespace, prompt: CompressedPrompt, limit: int) -> None:
    """Refuse a request from whose prompt stage 2 cannot drop tokens.

    Args:
        request: the request.
        prompt: its compressed prompt.
        limit: the engine's ``max_num_batched_tokens``: a prefill that drops is never split.
    """
    _check_tools(getattr(request, "tools", None) or ())
    prompt.check_ends_on_text(request.prompt_field)
    if prompt.plan.layout.num_tokens > limit:
        raise PromptTooLongError(request.prompt_field, prompt.plan.layout.num_tokens, limit)


def _check_tools(tools: Sequence[Any]) -> None:
    """Refuse built-in tools of the Responses API if vLLM runs them.

    After a tool's call, vLLM continues with the first prompt's sampling parameters, so with guiding rows of another
    prompt.
    """
    for i, tool in enumerate(tools if envs.VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT else ()):
        if tool.type != "function":
            raise RequestRefusedError("unsupported", f"tools[{i}].type", tool.type, "function with stage 2 on")
