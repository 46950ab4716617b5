"""Offline use: vLLM's ``LLM.chat`` with a compression setting, without a server."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import LLM, RequestOutput, SamplingParams

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt
from duet_server.api.options import ServerOptions
from duet_server.api.served_model import ServedModel
from duet_server.plan import CompressionField, CompressionSettings, SettingsError
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
        llm: vLLM's engine, with DUET's plugin loaded. vLLM loads the plugin unless ``VLLM_PLUGINS`` excludes it.
        messages: one conversation or a list of them, as ``llm.chat`` takes them.
        compression: a preset's name or an object, as in a request to the server.
        sampling_params: for all conversations; by default the model's.
        use_tqdm: whether to show a progress bar.

    Raises:
        SettingsError: if a setting, a conversation or a length cannot be served. In this case nothing has run.
    """
    served = ServedModel.from_config(llm.llm_engine.vllm_config, ServerOptions.from_args(Namespace()))
    params = sampling_params or llm.get_default_sampling_params()
    conversations = [messages] if isinstance(messages[0], Mapping) else messages
    try:
        settings = served.resolve(compression)
        requests = [_request(llm, served, settings, conversation, params.clone()) for conversation in conversations]
    except RequestRefusedError as error:
        raise SettingsError(str(error.parameter), error.value, error.expected) from error
    prompts, all_params = zip(*requests, strict=True)
    answers: list[RequestOutput] = llm._render_and_run_requests(
        iter(prompts), all_params, RequestOutput, use_tqdm=use_tqdm
    )
    return answers


def _request(
    llm: LLM, served: ServedModel, settings: CompressionSettings | None, messages: Any, params: SamplingParams
) -> tuple[Any, SamplingParams]:
    """A conversation's rendered prompt, and its sampling parameters with the keys that the engine reads."""
    if settings is None or served.shape is None or settings.is_off:
        return llm._preprocess_chat_one(messages), params
    engine_input = llm._preprocess_chat_one(messages, mm_processor_kwargs=encode_processor_kwargs(settings))
    prompt = RenderedPrompt.from_engine_input(engine_input)
    compressed = CompressedPrompt.make(settings, prompt, served.shape)
    if compressed.drops:
        compressed.check_ends_on_text("messages")
        _check_length(params.max_tokens, served.max_num_batched_tokens - len(prompt.token_ids))
        salient = prompt.salient_rows(llm.renderer.tokenizer, messages) if settings.guide == "salient" else []
        params.extra_args = {**(params.extra_args or {}), **encode_extra_args(settings, salient)}
    return engine_input, params


def _check_length(max_tokens: int | None, room: int) -> None:
    """Raise if prompt and answer do not fit one engine step: a prefill that drops is never split."""
    if max_tokens is None or max_tokens > room:
        expected = f"at most {room}: with stage 2 on, prompt and answer must fit max_num_batched_tokens"
        raise SettingsError("max_tokens", max_tokens, expected)
