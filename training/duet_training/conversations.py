"""A conversation as the model sees it: the tokens of its chat template, what is to be learnt, and which rows guide."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

from duet_server.guiding import AlignedText, pick
from duet_training.records import IMAGE_MARK, BadDataError, Turn

IGNORED = -100  # the label that torch's cross entropy passes over

Message = dict[str, Any]
Part = dict[str, str]


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """One entry for each of n tokens; a picture is one image token.

    ``labels`` are those of ``input_ids`` themselves, which the model shifts, and ``IGNORED`` outside of answers.
    ``guides`` has for every choice of ``guide`` the rows that rank visual tokens: never an answer's, and none before
    the first picture. A conversation without pictures has none.

    A conversation is compressed once for all of its questions, where a server compresses each turn's prompt by its own:
    later questions, which have seen the answers before them, help to choose, too.
    """

    input_ids: list[int]
    labels: list[int]
    guides: dict[str, list[bool]]


class _Exchange(NamedTuple):
    """A question and its answer in the chat template's text."""

    prompt: str
    answer: str


def encode(processor: Any, turns: Sequence[Turn]) -> EncodedConversation:
    """Render the turns by the model's own chat template; up to its first answer this is a server's prompt for them.

    Every answer ends on one EOS, whether or not the template writes it. Special tokens are those that the template
    writes: as for a server's chat completions, none are added.

    Args:
        processor: the model's, with a fast tokenizer and a chat template.
        turns: of ``user`` and ``assistant``, ending on an answer.

    Raises:
        BadDataError: if the image tokens in the text are not those of the ``<image>`` marks.
        ValueError: if the template renders an answer as something other than a continuation of its prompt.
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
    """The conversation, cut at its end to ``max_length`` tokens of which each picture takes ``tokens_per_picture``.

    Raises:
        BadDataError: if that would leave out a picture, or every answer after the last one.
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
            f"the conversation takes {lengths[-1]} tokens and has no {what} within the first {max_length}, "
            "expected a shorter one or a larger max_length"
        )
    guides = {guide: rows[:end] for guide, rows in conversation.guides.items()}
    return EncodedConversation(ids[:end], labels[:end], guides)


def _message(turn: Turn, eos: str) -> Message:
    """The turn as a chat template takes it; data may have written the EOS of an answer already."""
    is_answer = turn.role == "assistant"
    return {"role": turn.role, "content": _content(turn.text.strip().removesuffix(eos) if is_answer else turn.text)}


def _content(text: str) -> list[Part]:
    """A turn's parts. Its only picture comes first, as LLaVA has it; of several each stays where its mark is."""
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
    """The conversation's text; what the template writes after the last answer is left out."""
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
            "expected one that only ever appends"
        )
    return rendered[len(before) :]


def _end_answer(rendered: str, eos: str) -> tuple[str, str]:
    """The answer up to its one EOS, and what the template writes after an EOS of its own."""
    text, written, rest = rendered.rpartition(eos)
    if written and not rest.strip():
        return text + eos, rest
    return rendered.rstrip() + eos, ""


def _picture_rows(ids: Sequence[int], processor: Any, messages: Sequence[Message]) -> list[int]:
    rows = [row for row, token in enumerate(ids) if token == processor.image_token_id]
    num_pictures = sum(part["type"] == "image" for message in messages for part in message["content"])
    if len(rows) != num_pictures:
        raise BadDataError(
            f"{len(rows)} image tokens {processor.image_token!r} for {num_pictures} {IMAGE_MARK} marks once the chat "
            "template is applied, expected one for each and none in the text"
        )
    return rows


def _answer_rows(exchanges: Sequence[_Exchange], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens lie in answers; one that begins in a prompt does not."""
    in_answer = bytearray()
    for prompt, answer in exchanges:
        in_answer += b"\0" * len(prompt) + b"\1" * len(answer)
    in_answer.append(0)  # where a token without characters may lie
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
    """Rows of every question's salient words, found as a server finds them in the prompt that ends with the question.

    ``asked`` are exchanges, the user's texts in them and their answers' rows.
    """
    words: set[int] = set()
    if not pictures:
        return words
    visual, first_row = set(pictures), pictures[0] + 1
    rows = [(row, *offset) for row, offset in enumerate(offsets) if row not in visual]
    before, start = "", 0
    for exchange, texts, (answer_start, answer_end) in asked:
        prompt = AlignedText(before + exchange.prompt, [aligned for aligned in rows if aligned[0] < answer_start])
        # What was said before counts as one text, so that the question is not found in there.
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
