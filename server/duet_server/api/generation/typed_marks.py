"""Keeps the mark of a picture apart from the same characters in a person's text.

A chat template writes a mark, such as ``<image>``, where a picture belongs. The tokenizer makes one special token of
it, and vLLM puts the picture there. If a person's text has these characters, the tokenizer cannot tell, and the picture
moves into the text. Here such text is tokenized as text.

The template needs the text before the tokenizer does, so one character stands for each typed mark on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import regex
from vllm.renderers.base import BaseRenderer
from vllm.renderers.chat_utils import MM_PARSER_MAP, TEXT_PART_TYPES
from vllm.utils.async_utils import make_async

from duet_server.api.body_walk import texts_in
from duet_server.api.errors import RequestRefusedError
from duet_server.api.served_model import is_served
from duet_server.plan.errors import Words

# A noncharacter: Unicode keeps it for uses inside a program. One for each kind of mark follows from here.
_FIRST_STAND_IN = 0xFDD0
_TOKEN_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index", "audio_token_id")
_NOT_TEXT = frozenset(MM_PARSER_MAP) - TEXT_PART_TYPES | {"source", "data"}  # keys whose values are media


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark that the tokenizer knows.

    Attributes:
        text: its characters.
        token_id: its token.
        plain_ids: the tokens of the same characters as text; empty if the tokenizer cannot make any.
        stand_in: the character that stands for it, where it was typed.
    """

    text: str
    token_id: int
    plain_ids: tuple[int, ...]
    stand_in: str


def keep_typed_marks(renderer: Any) -> None:
    """Make vLLM's renderer of a process tokenize typed marks as text, on every route."""
    if isinstance(renderer, _TypedMarks) or renderer.tokenizer is None:
        return
    marks = tuple(_find_marks(renderer.tokenizer, renderer.config.model_config.hf_config))
    if marks:
        renderer.__class__ = type(f"Duet{type(renderer).__name__}", (_TypedMarks, type(renderer)), {})
        renderer.marks = marks
        renderer._tokenize_prompt_async = make_async(renderer._tokenize_prompt, executor=renderer._executor)


class _TypedMarks(BaseRenderer[Any]):
    """Mixin for vLLM's renderers. Every chat passes ``render_messages…``, and its text ``_tokenize_prompt``."""

    marks: tuple[Mark, ...]

    def render_messages(self, messages: Any, params: Any) -> Any:
        return super().render_messages(self._hidden(messages, params), params)

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        return await super().render_messages_async(self._hidden(messages, params), params)

    def _hidden(self, messages: Any, params: Any) -> Any:
        hidden = hide(messages, self.marks)
        returns_tokens = params.get_apply_chat_template_kwargs().get("tokenize")
        for mark in self.marks if returns_tokens else [mark for mark in self.marks if not mark.plain_ids]:
            if any(mark.stand_in in text for _, _, text in texts_in(hidden)):
                raise _refused(mark)
        return hidden

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        text = prompt["prompt"]
        self._check_count(text, prompt.get("multi_modal_data") or {})
        if not any(mark.stand_in in text for mark in self.marks):
            return super()._tokenize_prompt(prompt, params)
        typed = list(_typed(text, self.marks))
        for mark in self.marks:
            text = text.replace(mark.stand_in, mark.text)
        # Without truncation, so that every mark is there; vLLM truncates tokens once more.
        encoded = self.get_tokenizer()(text, truncation=False, add_special_tokens=params.add_special_tokens)
        token_ids = as_text(encoded["input_ids"], typed, self.marks)
        return self._build_tokens_prompt(token_ids, {**prompt, "prompt": text})

    def _check_count(self, text: str, media: Mapping[str, Any]) -> None:
        """Raise RequestRefusedError if a mark came in otherwise, as in the description of a tool."""
        images: Any = media.get("image")
        if not (isinstance(images, list) and images and is_served(self.config)):
            return
        for mark in self.marks:
            if len(images) < text.count(mark.text):
                raise _refused(mark)


def hide(value: Any, marks: Iterable[Mark], key: str = "") -> Any:
    """A copy of messages, or of a part of them, in which stand-ins replace the marks in texts. Media stay as they are.

    Raises:
        RequestRefusedError: if a text has the stand-in itself.
    """
    if isinstance(value, str):
        for mark in marks:
            if mark.stand_in in value:
                expected = f"text without U+{ord(mark.stand_in):X}, which is no character"
                raise RequestRefusedError("malformed", "messages", value, expected)
            value = value.replace(mark.text, mark.stand_in)
        return value
    if isinstance(value, dict):
        return {name: item if name in _NOT_TEXT else hide(item, marks, name) for name, item in value.items()}
    if isinstance(value, list):
        return [hide(item, marks, key) for item in value]
    return hide(list(value), marks, key) if key == "content" and value is not None else value


def as_text(token_ids: Iterable[int], typed: Iterable[bool], marks: Iterable[Mark]) -> list[int]:
    """Token ids in which the tokens of typed marks are replaced by those of their characters.

    Args:
        token_ids: of a rendered prompt.
        typed: for each mark in the prompt, in order, whether it was typed.
        marks: the marks that the tokenizer knows.
    """
    plain = {mark.token_id: mark.plain_ids for mark in marks}
    is_typed = iter(typed)
    result: list[int] = []
    for token_id in token_ids:
        if token_id in plain and next(is_typed):
            result += plain[token_id]
        else:
            result.append(token_id)
    return result


def _refused(mark: Mark) -> RequestRefusedError:
    return RequestRefusedError("unsupported", "messages", Words(f"text with {mark.text}"), "text without it")


def _typed(text: str, marks: Iterable[Mark]) -> Iterator[bool]:
    """For each mark of a rendered text, in order, whether a stand-in holds its place."""
    stand_ins = {mark.stand_in for mark in marks}
    either = regex.compile("|".join(regex.escape(word) for mark in marks for word in (mark.text, mark.stand_in)))
    return (match.group() in stand_ins for match in either.finditer(text))


def _find_marks(tokenizer: Any, config: Any) -> Iterator[Mark]:
    """The marks of the model's modalities."""
    token_ids: set[int] = {getattr(config, name) for name in _TOKEN_IDS if getattr(config, name, None) is not None}
    for number, token_id in enumerate(sorted(token_ids)):
        text = tokenizer.convert_ids_to_tokens(token_id)
        if isinstance(text, str):
            yield Mark(text, token_id, _plain_ids(tokenizer, text, token_id), chr(_FIRST_STAND_IN + number))


def _plain_ids(tokenizer: Any, text: str, token_id: int) -> tuple[int, ...]:
    """The tokens of a mark's characters in the middle of a text."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    before = tokenizer("\n", **options)["input_ids"]  # else some tokenizers begin with a space
    both = tokenizer("\n" + text, **options)["input_ids"]
    found = both[len(before) :] if both[: len(before)] == before else []
    return () if token_id in found else tuple(found)
