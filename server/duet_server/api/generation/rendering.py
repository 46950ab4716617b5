"""From a request to the engine's door: compression settings in, the engine's fields filled."""

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
from duet_server.api.generation.schema import CompressibleRequest
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.served_model import ServedModel
from duet_server.plan import CompressionField, CompressionSettings
from duet_server.plan.wire import encode_extra_args, encode_processor_kwargs

Messages = Sequence[Mapping[str, Any]]


class DuetRenderer(OnlineRenderer):
    """Takes the place of vLLM's renderer in the handlers that generate, and its settings over.

    Whatever the route, vLLM makes chat messages of a request and renders them by ``preprocess_chat``: there the prompt
    becomes known, and nothing has been sent yet.

    Args:
        handler: vLLM's own chat handler; its renderer and its defaults are all handlers'.
        served: the served model.
        metrics: where accepted requests are counted.
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
        """The one format whose prompts are not rendered below; its models take no images."""
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
        """Raises RequestRefusedError for what compression cannot do, before the engine hears of it."""
        state = request.duet
        state.dry_run |= skip_mm_cache
        list_contents(messages)
        settings = self._settings(request, messages)
        try:
            result = await super().preprocess_chat(
                request, messages, *args, skip_mm_cache=state.is_inspection, **kwargs
            )
        except AssertionError as error:  # vLLM's way to find a part without its content, or a picture that was cut off
            raise _refused_prompt(request) from error
        (engine_input,) = result[1]
        self._compress(request, messages, settings, engine_input)
        if not state.is_inspection:
            self._count(request, settings)
        return result

    async def render_responses(self, request: Any, **kwargs: Any) -> Any:
        """Raises RequestRefusedError, too, for items that vLLM reads without a look at their shape."""
        try:
            construct_input_messages(request_input=request.input)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
            items = [item.get("type") if isinstance(item, dict) else item.type for item in request.input]
            raise RequestRefusedError("unsupported", "input", items, "items with the content that they need") from error
        return await super().render_responses(request, **kwargs)

    def usage(self, request: CompressibleRequest) -> dict[str, Any] | None:
        """A rendered request's ``usage.compression``; None where there are neither images nor a wish for it."""
        shape, prompt = self.served.shape, request.duet.prompt
        if shape is None or prompt is None or not (prompt.num_images or request.compression is not None):
            return None
        return prompt.usage(shape)

    def _settings(self, request: Any, messages: Messages) -> CompressionSettings | None:
        """Resolve and check the request's settings, and have its images processed by them."""
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
        """Lay the settings out on the rendered prompt and fill the engine's fields."""
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
        expected = "null, or enough for all of the prompt's pictures"
        return RequestRefusedError("unsupported", "truncate_prompt_tokens", truncated, expected)
    return RequestRefusedError("unsupported", request.prompt_field, "malformed", "parts with all that they need")


def _has_counted_images(messages: Messages, engine_input: Any) -> bool:
    """Whether every image has passed the vision encoder, so that its tokens are the model's to count."""
    return engine_input["type"] in ("token", "multimodal") and not has_part(messages, "image_embeds")
