"""A rendered chat prompt seen through its visual spans, and the plan that its settings make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duet_server.api.errors import RequestRefusedError
from duet_server.guiding import salient_rows
from duet_server.plan import (
    CompressionSettings,
    ModelShape,
    RequestPlan,
    SettingsError,
    check_ends_on_text,
    compression_usage,
    make_layout,
    make_plan,
    visual_spans,
)

_TEXT_PARTS = ("text", "input_text")


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What vLLM's renderer hands to the engine: ``token_ids`` are final, images expanded to their visual tokens.

    ``text`` is the chat template's output, in which an image is one mark; None where the template gave tokens.
    """

    text: str | None
    token_ids: Sequence[int]
    visual_spans: tuple[tuple[int, int], ...]

    @classmethod
    def from_engine_input(cls, engine_input: Mapping[str, Any]) -> RenderedPrompt:
        images = engine_input.get("mm_placeholders", {}).get("image", ())
        return cls(engine_input.get("prompt"), engine_input["prompt_token_ids"], tuple(visual_spans(images)))

    def salient_rows(self, tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt rows of salient words in the user's messages.

        Raises:
            RequestRefusedError: if the chat template gives no text to find them in.
        """
        if self.text is None:
            expected = "all or last: the chat template of this model gives no text"
            raise RequestRefusedError("unsupported", "compression.guide", "salient", expected)
        return salient_rows(tokenizer, self.text, self.token_ids, self.visual_spans, user_texts(messages))


@dataclass(frozen=True, slots=True)
class CompressedPrompt:
    """What a request's settings come to on its prompt. Guiding rows do not change counts; the plan has none."""

    settings: CompressionSettings
    num_images: int
    plan: RequestPlan

    @classmethod
    def make(cls, settings: CompressionSettings, prompt: RenderedPrompt, shape: ModelShape) -> CompressedPrompt:
        entering = settings.num_entering(shape.vision.num_patches)
        lengths = [end - start for start, end in prompt.visual_spans]
        assert all(length == entering for length in lengths), f"{lengths=} {entering=} {settings=}"
        layout = make_layout(len(prompt.token_ids), prompt.visual_spans)
        return cls(settings, len(lengths), make_plan(layout, settings.keep, ()))

    @property
    def drops(self) -> bool:
        """Whether stage 2 takes anything from this prompt."""
        return self.plan.drops

    def check_ends_on_text(self, field: str) -> None:
        """Raise RequestRefusedError for a prompt that ends on an image, of which stage 2 could drop the last row.

        ``field`` is the one that holds the prompt.
        """
        try:
            check_ends_on_text(self.plan.layout)
        except SettingsError as error:
            raise RequestRefusedError("invalid_settings", field, error.value, error.expected) from error

    def usage(self, shape: ModelShape) -> dict[str, Any]:
        """``usage.compression``."""
        return compression_usage(self.settings, shape, self.num_images, self.plan)


def list_contents(messages: Sequence[Any]) -> None:
    """Turn one-shot iterators, which pydantic makes of some contents, into lists: they are read more than once.

    A part whose type is null has none; vLLM would trip over it later.
    """
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if content is not None and not isinstance(content, str | list):
            message["content"] = content = list(content)
        for part in _parts(content):
            if isinstance(part, dict) and part.get("type", "") is None:
                del part["type"]


def user_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text parts of the user's messages, in the prompt's order."""
    return [text for message in messages if message.get("role") == "user" for text in _texts(message.get("content"))]


def has_part(messages: Sequence[Mapping[str, Any]], part_type: str) -> bool:
    """Whether any message has a content part of this type."""
    return any(
        isinstance(part, Mapping) and (part.get("type") == part_type or part_type in part)
        for message in messages
        for part in _parts(message.get("content"))
    )


def _texts(content: object) -> Iterator[str]:
    for part in _parts(content):
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS:
            yield part.get("text", "")


def _parts(content: object) -> Sequence[object]:
    if isinstance(content, str):
        return [content]
    return content if isinstance(content, list) else []
