"""vLLM's chat completions with compression: settings in, engine fields filled, usage out."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator
from typing import Any, cast

from fastapi import Request
from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.renderers.chat_utils import has_non_text_content

from duet_server.api.checks import check_request, fit_max_tokens
from duet_server.api.errors import RequestRefusedError
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.options import CompressionField
from duet_server.api.prompt import CompressedPrompt, RenderedPrompt, has_part, user_texts
from duet_server.api.schema import DuetChatCompletionRequest
from duet_server.api.served_model import ServedModel
from duet_server.api.usage import with_usage, with_usage_chunk
from duet_server.engine.guiding import salient_rows
from duet_server.engine.request_plans import GUIDE, KEEP, STAGE1, TEXT, TRACE
from duet_server.plan import CompressionSettings


class DuetServingChat(OpenAIServingChat):
    """Takes the place of the chat handler that vLLM has set up, and its settings over.

    Args:
        handler: vLLM's own ``OpenAIServingChat``.
        served: the served model.
        metrics: where accepted requests are counted.
        trust_mm_kwargs: whether clients may send ``mm_processor_kwargs``, as ``--trust-request-mm-kwargs`` says.
    """

    def __init__(
        self, handler: OpenAIServingChat, served: ServedModel, metrics: CompressionMetrics, *, trust_mm_kwargs: bool
    ) -> None:
        self.__dict__.update(vars(handler))
        self.served = served
        self.metrics = metrics
        self.trust_mm_kwargs = trust_mm_kwargs
        # Past our own check of what the client sent, the renderer must take what the server adds.
        self.online_renderer = copy.copy(handler.online_renderer)
        self.online_renderer.trust_request_mm_kwargs = True

    async def create_chat_completion(self, request: ChatCompletionRequest, raw_request: Request | None = None) -> Any:
        return await super().create_chat_completion(_with_compression_field(request), raw_request)

    async def render_chat_request(self, request: DuetChatCompletionRequest) -> Any:
        """vLLM's hook between a request and the engine: here its prompt is known, and nothing has been sent yet."""
        settings = self._settings(request)
        result = await super().render_chat_request(request)
        if isinstance(result, ErrorResponse):
            return result
        (engine_input,) = result[1]
        try:
            compressed = self._compress(request, settings, engine_input)
        except Exception:
            self._forget_images(engine_input)
            raise
        if request._trace_id:  # a preview, no chat
            request._compressed = compressed
            return result
        if compressed is not None and (compressed.num_images or request.compression is not None):
            request._compressed = compressed
        self._count(request, settings)
        return result

    async def plan_chat(self, request: DuetChatCompletionRequest) -> CompressedPrompt | ErrorResponse:
        """What the request would come to, without sending anything to the engine.

        Raises:
            RequestRefusedError: as the request itself would be refused, or on a model without compression.
        """
        settings = self._settings(request)
        error = await self._check_model(request)
        if error is not None:
            return error
        # The cache that mirrors the engine's would note images that the engine never sees.
        result = await self.online_renderer.render_chat(request, skip_mm_cache=True)
        if isinstance(result, ErrorResponse):
            return result
        (engine_input,) = result[1]
        compressed = self._compress(request, settings, engine_input)
        if compressed is None:
            raise self.served.refuse_model()
        return compressed

    async def chat_completion_full_generator(
        self, request: DuetChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> Any:
        response = await super().chat_completion_full_generator(request, *args, **kwargs)
        usage = self._usage(request)
        return response if usage is None or isinstance(response, ErrorResponse) else with_usage(response, usage)

    async def chat_completion_stream_generator(
        self, request: DuetChatCompletionRequest, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        usage = self._usage(request)
        async for event in super().chat_completion_stream_generator(request, *args, **kwargs):
            yield event if usage is None else with_usage_chunk(event, usage)

    def _settings(self, request: DuetChatCompletionRequest) -> CompressionSettings | None:
        """Resolve and check the request's settings, and have its images processed by them."""
        validate_request_mm_kwargs(
            mm_processor_kwargs=request.mm_processor_kwargs,
            media_io_kwargs=request.media_io_kwargs,
            trust_request_mm_kwargs=self.trust_mm_kwargs,
        )
        settings = self.served.resolve(cast(CompressionField | None, request.compression))
        if request._trace_id:
            request.mm_processor_kwargs = {**(request.mm_processor_kwargs or {}), TRACE: request._trace_id}
        if settings is None or settings.is_off or not has_non_text_content(request.messages):
            return settings
        check_request(request)
        if settings.dominant is not None:
            counts = [settings.dominant, settings.contextual, settings.cluster_width or 0]
            request.mm_processor_kwargs = {**(request.mm_processor_kwargs or {}), STAGE1: counts}
        return settings

    def _compress(
        self, request: DuetChatCompletionRequest, settings: CompressionSettings | None, engine_input: Any
    ) -> CompressedPrompt | None:
        """Lay the settings out on the rendered prompt and fill the engine's fields; None without compression."""
        shape = self.served.shape
        if settings is None or shape is None or not _has_counted_images(request, engine_input):
            return None
        prompt = RenderedPrompt.from_engine_input(engine_input)
        compressed = CompressedPrompt.make(settings, prompt, shape)
        if compressed.drops:
            compressed.check_ends_on_text()
            self._fit_max_tokens(request, len(prompt.token_ids))
            request.vllm_xargs = {**(request.vllm_xargs or {}), **self._stage2_args(request, settings, prompt)}
        return compressed

    def _fit_max_tokens(self, request: DuetChatCompletionRequest, num_prompt_tokens: int) -> None:
        limit, max_model_len = self.served.max_num_batched_tokens, self.model_config.max_model_len
        fit_max_tokens(
            request, num_prompt_tokens, limit, max_model_len, self.default_sampling_params, self.override_max_tokens
        )

    def _stage2_args(
        self, request: DuetChatCompletionRequest, settings: CompressionSettings, prompt: RenderedPrompt
    ) -> dict[str, Any]:
        args: dict[str, Any] = {KEEP: list(settings.keep), TEXT: settings.text}
        if request._trace_id:
            args[TRACE] = request._trace_id
        if settings.text == "salient":
            if prompt.text is None:
                expected = "all or last: the chat template of this model gives no text"
                raise RequestRefusedError("unsupported", "compression.text", settings.text, expected)
            args[GUIDE] = salient_rows(
                self.renderer.tokenizer,
                prompt.text,
                prompt.token_ids,
                prompt.visual_spans,
                user_texts(request.messages),
            )
        return args

    def _usage(self, request: DuetChatCompletionRequest) -> dict[str, Any] | None:
        shape, compressed = self.served.shape, request._compressed
        return None if compressed is None or shape is None else compressed.usage(shape)

    def _count(self, request: DuetChatCompletionRequest, settings: CompressionSettings | None) -> None:
        self.metrics.count_request("off" if settings is None else settings.preset)
        usage = self._usage(request)
        if usage is not None and usage["visual_tokens"]["encoder"]:
            self.metrics.count_compression(usage)

    def _forget_images(self, engine_input: Any) -> None:
        """Undo what rendering noted: that the engine has these images, which now will never reach it."""
        cache = self.renderer.mm_processor_cache
        if cache is None:
            return
        for hashes in engine_input.get("mm_hashes", {}).values():
            for mm_hash in hashes:
                cache.invalidate(mm_hash)


def _with_compression_field(request: ChatCompletionRequest) -> DuetChatCompletionRequest:
    """Requests of vLLM's other routes to this handler carry ``compression`` as an extra field."""
    if isinstance(request, DuetChatCompletionRequest):
        return request
    fields = request.model_dump(exclude_unset=True)
    return cast(DuetChatCompletionRequest, DuetChatCompletionRequest.model_validate(fields))


def _has_counted_images(request: DuetChatCompletionRequest, engine_input: Any) -> bool:
    """Whether every image has passed the vision encoder, so that its tokens are the model's to count."""
    return engine_input["type"] in ("token", "multimodal") and not has_part(request.messages, "image_embeds")
