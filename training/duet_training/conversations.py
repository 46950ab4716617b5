"""A conversation as the model sees it: its tokens in the chat template, its labels and its guiding rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

from duet_server.guiding import AlignedText, pick
from duet_training.records import IMAGE_MARK, BadDataError, Turn

IGNORED = -100  # torch's cross entropy ignores this label

Message = dict[str, Any]
Part = dict[str, str]


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Lists with one entry for each of n tokens; a picture is one image token.

    ``labels`` equals ``input_ids`` in answers and is ``IGNORED`` elsewhere; the model shifts labels by one token.
    ``guides`` marks the rows that rank visual tokens, for every choice of ``guide``. These rows are never in an answer
    and never before the first picture. A conversation without pictures has none.

    Training compresses a conversation once, and the questions of all turns guide. Later questions attend to earlier
    answers, so these answers influence the choice. A server instead compresses each turn's prompt separately.
    """

    input_ids: list[int]
    labels: list[int]
    guides: dict[str, list[bool]]


class _Exchange(NamedTuple):
    """A question and its answer, as text rendered by the chat template."""

    prompt: str
    answer: str


def encode(processor: Any, turns: Sequence[Turn]) -> EncodedConversation:
    """Render the turns with the model's own chat template, and tokenize the text.

    Up to the first answer, the tokens are a server's prompt for the same turns. Every answer ends with exactly one EOS,
    even if the template writes none. The tokenizer adds no special tokens to those that the template writes, as in a
    server's chat completions.

    Args:
        processor: the model's processor, with a fast tokenizer and a chat template.
        turns: alternately from ``user`` and ``assistant``, ending with an answer.

    Raises:
        BadDataError: if there is not exactly one image token for each ``<image>`` mark.
        ValueError: if the template does not render an answer as a continuation of its prompt.
    """
    messages = [_message(turn, processor.tokenizer.eos_token) for turn in turns]
    exchanges = _exchanges(processor, messages)
    text = "".join(chain.from_iterable(exchanges))
    tokens = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
    is_answer = _answer_rows(exchanges, offsets)
    pictures = _picture_rows(ids, processor, messages)
    questions = [[part["text"] for part in message["content"] if "text" in part] for message in messages[::2]]
    words = _salient_words(offsets, zip(exchanges, questions, _runs(is_answer), strict=True), pictures)
    labels = [token if learnt else IGNORED for token, learnt in zip(ids, is_answer, strict=True)]
    return EncodedConversation(ids, labels, _guides(is_answer, pictures, words))


def truncate(
    conversation: EncodedConversation, image_token_id: int, tokens_per_picture: int, max_length: int
) -> EncodedConversation:
    """The conversation, cut at its end to ``max_length`` tokens; each picture counts as ``tokens_per_picture``.

    Raises:
        BadDataError: if this would remove a picture, or every answer after the last picture.
    """
    ids, labels = conversation.input_ids, conversation.labels
    lengths = list(accumulate(tokens_per_picture if token == image_token_id else 1 for token in ids))
    end = bisect_right(lengths, max_length)
    if end == len(ids):
        return conversation
    num_before_text = max((row + 1 for row, token in enumerate(ids) if token == image_token_id), default=0)
    if all(label == IGNORED for label in labels[num_before_text:end]):
        what = "answer after its last picture" if num_before_text else "answer"
        raise BadDataError(
            f"the conversation has {lengths[-1]} tokens and no {what} within the first {max_length}, "
            "expected a shorter conversation or a larger max_length"
        )
    guides = {guide: rows[:end] for guide, rows in conversation.guides.items()}
    return EncodedConversation(ids[:end], labels[:end], guides)


def _message(turn: Turn, eos: str) -> Message:
    """The turn as a chat template expects it, without the EOS that an answer in the data may end with."""
    is_answer = turn.role == "assistant"
    return {"role": turn.role, "content": _content(turn.text.strip().removesuffix(eos) if is_answer else turn.text)}


def _content(text: str) -> list[Part]:
    """A turn's parts. A single picture comes first, as in LLaVA; several pictures stay where their marks are."""
    before, *others = text.split(IMAGE_MARK)
    if len(others) == 1:
        before, others = "", [before + others[0]]
    parts = _text_parts(before)
    for other in others:
        parts += [{"type": "image"}, *_text_parts(other)]
    return parts


def _text_parts(text: str) -> list[Part]:
    stripped = text.strip()
    return [{"type": "text", "text": stripped}] if stripped else []


def _exchanges(processor: Any, messages: Sequence[Message]) -> list[_Exchange]:
    """The conversation's text, without the text that the template writes after the last answer."""
    exchanges: list[_Exchange] = []
    done, rest = "", ""
    for idx in range(1, len(messages), 2):
        prompt = _added(done, processor.apply_chat_template(messages[:idx], add_generation_prompt=True, tokenize=False))
        rendered = processor.apply_chat_template(messages[: idx + 1], tokenize=False)
        answer, next_rest = _end_answer(_added(done + prompt, rendered), processor.tokenizer.eos_token)
        exchanges.append(_Exchange(rest + prompt, answer))
        done, rest = rendered, next_rest
    return exchanges


def _added(before: str, rendered: str) -> str:
    if not rendered.startswith(before):
        raise ValueError(
            f"the chat template does not continue {before[-80:]!r} but renders {rendered[-80:]!r}, "
            "expected a template that only appends text"
        )
    return rendered[len(before) :]


def _end_answer(rendered: str, eos: str) -> tuple[str, str]:
    """The answer, ending with one EOS, and the text after it if the template itself wrote the EOS."""
    text, written, rest = rendered.rpartition(eos)
    if written and not rest.strip():
        return text + eos, rest
    return rendered.rstrip() + eos, ""


def _picture_rows(ids: Sequence[int], processor: Any, messages: Sequence[Message]) -> list[int]:
    rows = [row for row, token in enumerate(ids) if token == processor.image_token_id]
    num_pictures = sum(part["type"] == "image" for message in messages for part in message["content"])
    if len(rows) != num_pictures:
        raise BadDataError(
            f"{len(rows)} image tokens {processor.image_token!r} for {num_pictures} {IMAGE_MARK} marks after the "
            "chat template is applied, expected one token for each mark and none in the text"
        )
    return rows


def _answer_rows(exchanges: Sequence[_Exchange], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token is in an answer. A token that starts in a prompt is not."""
    in_answer = bytearray()
    for prompt, answer in exchanges:
        in_answer += b"\0" * len(prompt) + b"\1" * len(answer)
    in_answer.append(0)  # for a token without characters at the end of the text
    return [bool(in_answer[start]) for start, _ in offsets]


def _runs(is_answer: Sequence[bool]) -> list[tuple[int, int]]:
    """The rows ``[start, end)`` of each answer."""
    edges = [row for row, (before, here) in enumerate(pairwise([False, *is_answer, False])) if before != here]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _salient_words(
    offsets: Sequence[tuple[int, int]],
    asked: Iterable[tuple[_Exchange, list[str], tuple[int, int]]],
    pictures: Sequence[int],
) -> set[int]:
    """The rows of every question's salient words. A server finds the same words in the prompt that ends there.

    ``asked`` has, for each question, the exchange, the user's texts in it and the rows of its answer.
    """
    words: set[int] = set()
    if not pictures:
        return words
    visual, first_row = set(pictures), pictures[0] + 1
    rows = [(row, *offset) for row, offset in enumerate(offsets) if row not in visual]
    before, start = "", 0
    for exchange, texts, (answer_start, answer_end) in asked:
        prompt = AlignedText(before + exchange.prompt, [aligned for aligned in rows if aligned[0] < answer_start])
        # The earlier conversation counts as one text, so that the question is not found in it.
        words.update(row for row in pick(prompt, [before, *texts], first_row) if row >= start)
        before, start = before + exchange.prompt + exchange.answer, answer_end
    return words


def _guides(is_answer: Sequence[bool], pictures: Sequence[int], words: Container[int]) -> dict[str, list[bool]]:
    first = pictures[0] if pictures else len(is_answer)
    visual = set(pictures)
    every = [row > first and row not in visual and not answer for row, answer in enumerate(is_answer)]
    pairs = enumerate(pairwise([*is_answer, False]))
    last = [row > first and not answer and answer_follows for row, (answer, answer_follows) in pairs]
    return {"all": every, "salient": [ends or row in words for row, ends in enumerate(last)], "last": last}
