"""A rendered chat prompt with its visual spans, and the plan of its compression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duet_server.api.errors import RequestRefusedError, invalid_settings
from duet_server.guiding import salient_rows
from duet_server.plan import (
    CompressionSettings,
    ModelShape,
    RequestPlan,
    SettingsError,
    VisualItem,
    VisualRows,
    check_ends_on_text,
    check_item,
    compression_usage,
    excess_positions,
    plan_prompt,
)
from duet_server.plan.wire import LENGTH_KEY, field_key, units_of

_TEXT_PARTS = ("text", "input_text")


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The output of vLLM's renderer. ``token_ids`` are final: every image is expanded to its visual tokens.

    ``text`` is the output of the chat template, with one placeholder per image; None if the template returned tokens.
    ``items`` are the images, in the prompt's order.
    """

    text: str | None
    token_ids: Sequence[int]
    visual: VisualRows
    items: tuple[VisualItem, ...]

    @classmethod
    def from_engine_input(cls, engine_input: Mapping[str, Any]) -> RenderedPrompt:
        placed = [
            (place, modality, item)
            for modality, places in engine_input.get("mm_placeholders", {}).items()
            for place, item in zip(places, items_of(engine_input, modality), strict=True)
        ]
        placed.sort(key=lambda entry: entry[0].offset)
        visual = VisualRows.of(place for place, _, _ in placed)
        items = [
            _visual_item(modality, span, item) for span, (_, modality, item) in zip(visual.spans, placed, strict=True)
        ]
        return cls(engine_input.get("prompt"), engine_input["prompt_token_ids"], visual, tuple(items))

    @property
    def visual_spans(self) -> tuple[tuple[int, int], ...]:
        """The rows ``[start, end)`` of each image."""
        return tuple(self.visual.spans)

    def salient_rows(self, tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt rows of salient words in the user's messages.

        Raises:
            RequestRefusedError: if the chat template returned tokens, so that there is no text to search.
        """
        if self.text is None:
            expected = "all or last: this model's chat template returns no text"
            raise RequestRefusedError("unsupported", "compression.guide", "salient", expected)
        return salient_rows(tokenizer, self.text, self.token_ids, self.visual_spans, user_texts(messages))

    def has_words_before_pictures(self, tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether words of the user come before the first image. Some chat templates move the images to the front."""
        if not self.visual_spans or not _begins_with_text(messages):
            return False
        before = tokenizer.decode(self.token_ids[: min(self.visual_spans)[0]])
        return user_texts(messages)[0].strip() in before


@dataclass(frozen=True, slots=True)
class CompressedPrompt:
    """A request's settings applied to its prompt. ``plan`` has no guiding rows, because they do not change counts.

    ``notes`` are sentences for the client, about what was done otherwise than the settings say.
    """

    settings: CompressionSettings
    items: tuple[VisualItem, ...]
    plan: RequestPlan
    notes: tuple[str, ...] = ()

    @classmethod
    def make(cls, settings: CompressionSettings, prompt: RenderedPrompt, shape: ModelShape) -> CompressedPrompt:
        plan = plan_prompt(settings, shape, len(prompt.token_ids), prompt.visual, prompt.items)
        return cls(settings, prompt.items, plan)

    def check_items(self, asked: object, shape: ModelShape, max_reduction: float, max_excess: float) -> None:
        """Raise RequestRefusedError where the sizes of the prompt's images make its settings impossible.

        Args:
            asked: the ``compression`` field.
            shape: the model.
            max_reduction: the largest reduction that the server allows.
            max_excess: how many more positions than tokens a prompt may have.
        """
        for item in self.items:
            counts = (item.num_tokens, *item.segment_counts(self.settings, shape))
            try:
                check_item(self.settings, asked, shape, counts, max_reduction)
            except SettingsError as error:
                raise invalid_settings(error) from error
        excess = excess_positions(unit for item in self.items for unit in item.units)
        if excess > max_excess:
            expected = f"more visual tokens: without them this prompt has {excess} positions more than tokens"
            raise RequestRefusedError("invalid_settings", "compression", asked, expected)

    @property
    def drops(self) -> bool:
        """Whether stage 2 drops any token of this prompt."""
        return self.plan.drops

    def check_ends_on_text(self, field: str) -> None:
        """Raise RequestRefusedError if the prompt ends with an image, because stage 2 could drop its last row.

        ``field`` is the request's field that holds the prompt.
        """
        try:
            check_ends_on_text(self.plan.layout)
        except SettingsError as error:
            raise RequestRefusedError("invalid_settings", field, error.value, error.expected) from error

    def usage(self, shape: ModelShape) -> dict[str, Any]:
        """The value of ``usage.compression``."""
        return compression_usage(self.settings, shape, self.items, self.plan, self.notes)


def items_of(engine_input: Mapping[str, Any], modality: str) -> list[Any]:
    """vLLM's item of each placeholder of a modality. A repeated picture has one, which is found by its hash."""
    hashes = engine_input["mm_hashes"][modality]
    items = dict(zip(hashes[::-1], engine_input["mm_kwargs"][modality][::-1], strict=True))
    return [items[mm_hash] for mm_hash in hashes]


def _visual_item(modality: str, span: tuple[int, int], item: Any) -> VisualItem:
    """An image of the prompt, from the fields that the engine's processor adds; embeddings have none."""
    units = units_of(item, modality)
    length = int(item[field_key(LENGTH_KEY, modality)].data) if units else span[1] - span[0]
    return VisualItem(modality, span, length, tuple(units))


def list_contents(messages: Sequence[Any]) -> None:
    """Turn message contents into lists. Pydantic makes one-shot iterators of some, but they are read more than once.

    Also remove what vLLM would fail on later: texts that are null, and a part's ``type`` if it is null. And name the
    ``detail`` of a picture in a form that needs it.
    """
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if content is not None and not isinstance(content, str | list):
            message["content"] = content = list(content)
        if isinstance(content, list):
            message["content"] = content = [part for part in content if not _is_null_text(part)]
        for part in _parts(content):
            if isinstance(part, dict) and part.get("type", "") is None:
                del part["type"]
            if isinstance(part, dict) and part.get("type") == "input_image":
                part.setdefault("detail", "auto")


def user_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text parts of the user's messages, in the prompt's order."""
    return [text for message in messages if message.get("role") == "user" for text in _texts(message.get("content"))]


def _begins_with_text(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the user's first part is a text."""
    parts = [part for message in messages if message.get("role") == "user" for part in _parts(message.get("content"))]
    return bool(parts) and bool(list(_texts(parts[:1])))


def find_part(messages: Sequence[Mapping[str, Any]], part_type: str) -> Mapping[str, Any] | None:
    """The first content part of this type."""
    for message in messages:
        for part in _parts(message.get("content")):
            if isinstance(part, Mapping) and (part.get("type") == part_type or part_type in part):
                return part
    return None


def _texts(content: object) -> Iterator[str]:
    for part in _parts(content):
        if isinstance(part, str):
            yield part
        elif (
            isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS and isinstance(part.get("text"), str)
        ):
            yield part["text"]


def _is_null_text(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS and part.get("text") is None


def _parts(content: object) -> Sequence[object]:
    if isinstance(content, str):
        return [content]
    return content if isinstance(content, list) else []
