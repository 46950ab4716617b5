"""Renders requests with compression: resolves the settings and fills the fields that the engine reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses.utils import construct_input_messages
from vllm.renderers.chat_utils import has_non_text_content
from vllm.renderers.online_renderer import OnlineRenderer

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.checks import check_request, room_for_answer
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt, has_part, list_contents
from duet_server.api.generation.request_compression import RequestCompression
from duet_server.api.generation.schema import CompressibleRequest
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.served_model import ServedModel
from duet_server.plan import CompressionField, CompressionSettings
from duet_server.plan.wire import encode_extra_args, encode_processor_kwargs

Messages = Sequence[Mapping[str, Any]]


class DuetRenderer(OnlineRenderer):
    """Replaces vLLM's renderer in the handlers that generate text, and copies its attributes.

    On every route, vLLM turns a request into chat messages and renders them with ``preprocess_chat``. There the prompt
    becomes known, before anything is sent to the engine.

    Args:
        handler: vLLM's own chat handler. All handlers share its renderer and its defaults.
        served: the served model.
        metrics: counts accepted requests.
    """

    def __init__(self, handler: OpenAIServingChat, served: ServedModel, metrics: CompressionMetrics) -> None:
        self.__dict__.update(vars(handler.online_renderer))
        self.served = served
        self.metrics = metrics
        self._answer_limits = (
            served.max_num_batched_tokens,
            self.model_config.max_model_len,
            handler.default_sampling_params,
            handler.override_max_tokens,
        )
        # `_settings` checks the client's own kwargs; vLLM must not reject the keys that we add afterwards.
        self._trust_clients_mm_kwargs: bool = handler.online_renderer.trust_request_mm_kwargs
        self.trust_request_mm_kwargs = True

    def adjust_harmony_request(self, request: CompressibleRequest) -> None:
        """Check the settings here, because ``preprocess_chat`` never sees Harmony prompts. They have no images."""
        self.served.resolve(cast(CompressionField | None, request.compression))
        super().adjust_harmony_request(request)

    async def preprocess_chat(
        self,
        request: CompressibleRequest,
        messages: list[Any],
        *args: Any,
        skip_mm_cache: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Raises RequestRefusedError if compression cannot serve the request. Nothing has reached the engine then."""
        state = request.duet
        state.dry_run |= skip_mm_cache
        list_contents(messages)
        settings = self._settings(request, messages)
        try:
            result = await super().preprocess_chat(
                request, messages, *args, skip_mm_cache=state.is_inspection, **kwargs
            )
        except AssertionError as error:  # vLLM asserts if a part has no content or truncation cuts off a picture
            raise _refused_prompt(request) from error
        (engine_input,) = result[1]
        self._compress(request, messages, settings, engine_input)
        if not state.is_inspection:
            self._count(request, settings)
        return result

    async def render_responses(self, request: Any, **kwargs: Any) -> Any:
        """Also raises RequestRefusedError for malformed items, which vLLM does not check."""
        try:
            construct_input_messages(request_input=request.input)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
            items = [item.get("type") if isinstance(item, dict) else item.type for item in request.input]
            raise RequestRefusedError("unsupported", "input", items, "items with all required fields") from error
        return await super().render_responses(request, **kwargs)

    def usage(self, request: CompressibleRequest, state: RequestCompression | None = None) -> dict[str, Any] | None:
        """A rendered request's ``usage.compression``; None if it has neither images nor a ``compression`` field.

        ``state`` is the state of one conversation of a batch; by default the request's own.
        """
        shape, prompt = self.served.shape, (state or request.duet).prompt
        if shape is None or prompt is None or not (prompt.num_images or request.compression is not None):
            return None
        return prompt.usage(shape)

    def _settings(self, request: Any, messages: Messages) -> CompressionSettings | None:
        """Resolve and check the request's settings, and pass them to the image processor."""
        validate_request_mm_kwargs(
            mm_processor_kwargs=request.mm_processor_kwargs,
            media_io_kwargs=request.media_io_kwargs,
            trust_request_mm_kwargs=self._trust_clients_mm_kwargs,
        )
        settings = self.served.resolve(request.compression)
        compresses = settings is not None and not settings.is_off and has_non_text_content(messages)
        if compresses:
            check_request(request, messages)
        kwargs = encode_processor_kwargs(settings if compresses else None, request.duet.trace_id)
        if kwargs:
            request.mm_processor_kwargs = {**(request.mm_processor_kwargs or {}), **kwargs}
        return settings

    def _compress(
        self, request: Any, messages: Messages, settings: CompressionSettings | None, engine_input: Any
    ) -> None:
        """Apply the settings to the rendered prompt and fill the fields that the engine reads."""
        shape = self.served.shape
        if settings is None or shape is None or not _has_counted_images(messages, engine_input):
            return
        prompt = RenderedPrompt.from_engine_input(engine_input)
        request.duet.prompt = compressed = CompressedPrompt.make(settings, prompt, shape)
        if compressed.drops:
            compressed.check_ends_on_text(request.prompt_field)
            request.duet.room = room_for_answer(request, len(prompt.token_ids), *self._answer_limits)
            salient = prompt.salient_rows(self.renderer.tokenizer, messages) if settings.guide == "salient" else []
            args = encode_extra_args(settings, salient, request.duet.trace_id)
            request.vllm_xargs = {**(request.vllm_xargs or {}), **args}

    def _count(self, request: CompressibleRequest, settings: CompressionSettings | None) -> None:
        self.metrics.count_request("off" if settings is None else settings.preset)
        usage = self.usage(request)
        if usage is not None and usage["visual_tokens"]["encoder"]:
            self.metrics.count_compression(usage)


def _refused_prompt(request: CompressibleRequest) -> RequestRefusedError:
    truncated = getattr(request, "truncate_prompt_tokens", None)
    if truncated is not None:
        expected = "null, or enough tokens for all pictures of the prompt"
        return RequestRefusedError("unsupported", "truncate_prompt_tokens", truncated, expected)
    return RequestRefusedError("unsupported", request.prompt_field, "malformed", "parts with all required fields")


def _has_counted_images(messages: Messages, engine_input: Any) -> bool:
    """Whether the vision encoder makes all visual tokens, so that their number is known."""
    return engine_input["type"] in ("token", "multimodal") and not has_part(messages, "image_embeds")
