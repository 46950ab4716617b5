"""Renders requests with compression: resolves the settings and fills the fields that the engine reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import ValidationError
from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses.utils import construct_input_messages
from vllm.renderers.chat_utils import has_non_text_content
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.utils.async_utils import make_async

from duet_server.api.error_spelling import invalid_part
from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.checks import check_request, check_stage2
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt, find_part, list_contents
from duet_server.api.generation.request_compression import RequestCompression
from duet_server.api.generation.schema import CompressibleRequest
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.served_model import ServedModel
from duet_server.plan import CompressionField, CompressionSettings
from duet_server.plan.errors import Words
from duet_server.plan.wire import encode_extra_args, encode_processor_kwargs

_WORDS_BEFORE_PICTURES = (
    "Words before the first picture do not guide stage 2: visual tokens are ranked by the text behind them. Put the "
    "picture first."
)

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
        try:
            list_contents(messages)
            settings, notes = self._settings(request, messages)
            result = await super().preprocess_chat(
                request, messages, *args, skip_mm_cache=state.is_inspection, **kwargs
            )
        except AssertionError as error:  # vLLM asserts if a part has no content or truncation cuts off a picture
            raise _refused_prompt(request) from error
        except ValidationError as error:  # vLLM checks some parts only now
            raise invalid_part(error, request.prompt_field) from error
        (engine_input,) = result[1]
        if settings is not None and _has_counted_images(messages, engine_input):
            state.prompt = await self._compress(request, messages, settings, engine_input, notes)
        if not state.is_inspection:
            self._count(request, state.prompt.settings if state.prompt else settings)
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
        if shape is None or prompt is None or not (prompt.items or request.compression is not None):
            return None
        return prompt.usage(shape)

    def _settings(self, request: Any, messages: Messages) -> tuple[CompressionSettings | None, list[str]]:
        """Resolve and check the request's settings, and pass them to the image processor. Also notes for its usage."""
        validate_request_mm_kwargs(
            mm_processor_kwargs=request.mm_processor_kwargs,
            media_io_kwargs=request.media_io_kwargs,
            trust_request_mm_kwargs=self._trust_clients_mm_kwargs,
        )
        settings, notes = self.served.resolve(request.compression), list[str]()
        if settings is not None and not settings.is_off and has_non_text_content(messages):
            try:
                check_request(request, messages)
            except RequestRefusedError as error:
                notes.append(_note_of_default(request, error, "not applied"))
                settings = self.served.resolve("off")
        compresses = settings is not None and not settings.is_off and has_non_text_content(messages)
        kwargs = encode_processor_kwargs(settings if compresses else None, self.served.shape, request.duet.trace_id)
        if kwargs:
            request.mm_processor_kwargs = {**(request.mm_processor_kwargs or {}), **kwargs}
        return settings, notes

    async def _compress(
        self, request: Any, messages: Messages, settings: CompressionSettings, engine_input: Any, notes: list[str]
    ) -> CompressedPrompt:
        """Apply the settings to the rendered prompt, and fill the fields that the engine reads."""
        shape = self.served.shape
        assert shape is not None, f"{settings=}"
        prompt = RenderedPrompt.from_engine_input(engine_input)
        compressed = CompressedPrompt.make(settings, prompt, shape)
        # The operator's own default is not subject to the limit for clients.
        asked, limit = (
            (self.served.default, 1.0)
            if request.compression is None
            else (request.compression, self.served.max_reduction)
        )
        compressed.check_items(asked, shape, limit, self.served.max_excess)
        if compressed.drops:
            try:
                check_stage2(request, compressed, self.served.max_num_batched_tokens)
                salient, passed_over = await self._guide(prompt, messages, settings.guide)
            except RequestRefusedError as error:
                notes.append(_note_of_default(request, error, "applied without stage 2"))
                compressed = CompressedPrompt.make(settings.without_stage2(), prompt, shape)
            else:
                notes += [_WORDS_BEFORE_PICTURES] if passed_over else []
                args = encode_extra_args(compressed.plan, settings.guide, salient, request.duet.trace_id)
                request.vllm_xargs = {**(request.vllm_xargs or {}), **args}
        return replace(compressed, notes=tuple(notes))

    async def _guide(self, prompt: RenderedPrompt, messages: Messages, guide: str) -> tuple[list[int], bool]:
        """The salient rows, and whether words were passed over because they come before the first image.

        Tokenizing takes milliseconds, so it runs in the renderer's threads, as vLLM's own does.
        """

        def find() -> tuple[list[int], bool]:
            tokenizer = self.renderer.tokenizer
            salient = prompt.salient_rows(tokenizer, messages) if guide == "salient" else []
            return salient, guide != "last" and prompt.has_words_before_pictures(tokenizer, messages)

        found: tuple[list[int], bool] = await make_async(find, executor=self.renderer._executor)()
        return found

    def _count(self, request: CompressibleRequest, settings: CompressionSettings | None) -> None:
        self.metrics.count_request("off" if settings is None else settings.preset)
        usage = self.usage(request)
        if usage is not None and usage["visual_tokens"]["encoder"]:
            self.metrics.count_compression(usage)


def _note_of_default(request: CompressibleRequest, error: RequestRefusedError, result: str) -> str:
    """A note that the server's default was not applied as it is. Raises the error if the client asked for it."""
    if request.compression is not None:
        raise error
    return f"The server's default compression is {result}: {error}"


def _refused_prompt(request: CompressibleRequest) -> RequestRefusedError:
    truncated = getattr(request, "truncate_prompt_tokens", None)
    if truncated is not None:
        expected = "null, or enough tokens for all pictures of the prompt"
        return RequestRefusedError("unsupported", "truncate_prompt_tokens", truncated, expected)
    return RequestRefusedError("malformed", request.prompt_field, Words("malformed"), "parts with all required fields")


def _has_counted_images(messages: Messages, engine_input: Any) -> bool:
    """Whether the vision encoder makes all visual tokens, so that their number is known."""
    return engine_input["type"] in ("token", "multimodal") and find_part(messages, "image_embeds") is None
