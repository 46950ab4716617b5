"""Offline use: vLLM's ``LLM.chat`` with a compression setting, without a server."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams
from vllm.renderers.chat_utils import has_non_text_content

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.checks import check_request, check_stage2
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt
from duet_server.api.generation.typed_marks import keep_typed_marks
from duet_server.api.served_model import max_step_tokens, model_shape
from duet_server.plan import CompressionField, CompressionSettings, ModelShape, SettingsError, resolve_settings
from duet_server.plan.wire import encode_extra_args, encode_processor_kwargs

Conversation = Sequence[Mapping[str, Any]]


def chat(
    llm: LLM,
    messages: Conversation | Sequence[Conversation],
    compression: CompressionField,
    sampling_params: SamplingParams | None = None,
    *,
    use_tqdm: bool = True,
) -> list[RequestOutput]:
    """Answer conversations in one batch, as ``llm.chat`` does, with fewer visual tokens.

    Args:
        llm: vLLM's engine. It must serve the model with compression: DUET's plugin is loaded unless ``VLLM_PLUGINS``
            excludes it.
        messages: one conversation or a list of conversations, as for ``llm.chat``.
        compression: a preset's name or an object, as in a request to the server.
        sampling_params: for all conversations; by default the model's own.
        use_tqdm: whether to show a progress bar.

    Raises:
        SettingsError: for a setting, a conversation or a length that cannot be served. Nothing has run then.
    """
    keep_typed_marks(llm.renderer)
    shape = model_shape(llm.llm_engine.vllm_config)
    if shape is None and compression != "off":
        raise SettingsError("compression", compression, "off: this model is served without compression")
    settings = resolve_settings(compression, shape) if shape is not None else None
    try:
        if not messages or shape is None or settings is None or settings.is_off:
            return list(llm.chat(messages, sampling_params, use_tqdm=use_tqdm))
        params = sampling_params or llm.get_default_sampling_params()
        conversations = [messages] if isinstance(messages[0], Mapping) else messages
        requests = [_request(llm, shape, settings, conversation, params.clone()) for conversation in conversations]
    except RequestRefusedError as error:
        raise SettingsError(str(error.parameter), error.value, error.expected) from error
    prompts, all_params = zip(*requests, strict=True)
    return list(llm._render_and_run_requests(iter(prompts), all_params, RequestOutput, use_tqdm=use_tqdm))


def _request(
    llm: LLM, shape: ModelShape, settings: CompressionSettings, messages: Any, params: SamplingParams
) -> tuple[Any, SamplingParams]:
    """A conversation's rendered prompt, and its sampling parameters with the keys that the engine reads."""
    asked = Namespace(prompt_field="messages", prompt_logprobs=params.prompt_logprobs)  # what the server's checks read
    if has_non_text_content(messages):
        check_request(asked, messages)
    engine_input = llm._preprocess_chat_one(messages, mm_processor_kwargs=encode_processor_kwargs(settings, shape))
    prompt = RenderedPrompt.from_engine_input(engine_input)
    compressed = CompressedPrompt.make(settings, prompt, shape)
    if compressed.drops:
        check_stage2(asked, compressed, max_step_tokens(llm.llm_engine.vllm_config))
        salient = prompt.salient_rows(llm.renderer.tokenizer, messages) if settings.guide == "salient" else []
        params.extra_args = {**(params.extra_args or {}), **encode_extra_args(compressed.plan, settings.guide, salient)}
    return engine_input, params
