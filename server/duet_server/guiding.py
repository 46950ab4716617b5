"""Which prompt rows guide stage 2 under ``text: salient``: those of the words that carry the user's meaning.

A stop-word list alone decides, no part-of-speech tagger: one that ships its model outweighs the server itself and would
judge little differently (modal verbs, numerals).
"""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import Any

import regex

QUESTION_WORDS = frozenset({"who", "what", "where", "when", "why", "how", "which", "whom", "whose"})

# Letters with their combining marks and joiners, so that no script's words fall apart; Chinese or Thai, which writes no
# spaces, gives one word a run. An apostrophe parts a word: "what's" is "what" and the stop word "s".
WORD_OR_MARK = regex.compile(r"[\p{L}\p{N}\p{M}\u200c\u200d]+|[?!:？！：؟]")

# Stands for an image in decoded text, so that no text is found across one (U+FFFC, object replacement character).
IMAGE_BREAK = "\ufffc"

# What decoders give for a character that later tokens complete (U+FFFD). Real text may hold it too, hence the limit.
INCOMPLETE = "\ufffd"
MAX_TOKENS_PER_PIECE = 8


def _stop_words() -> frozenset[str]:
    """The function words of English (NLTK's list) that are no question words, in lower case."""
    # The list's file is read by itself: importing bm25s loads numba, and runs JAX where that is installed.
    path = distribution("bm25s").locate_file("bm25s/stopwords.py")
    return frozenset(runpy.run_path(str(path))["STOPWORDS_EN_PLUS"]) - QUESTION_WORDS


STOP_WORDS = _stop_words()


@dataclass(frozen=True, slots=True)
class AlignedText:
    """A prompt's text and the characters ``[start, end)`` of it behind each text row, ascending by row."""

    text: str
    rows: list[tuple[int, int, int]]  # (row, start, end); a row that stands for no character has start == end


def salient_rows(
    tokenizer: Any,
    prompt_text: str,
    prompt_token_ids: Sequence[int],
    visual_spans: Sequence[tuple[int, int]],
    user_texts: Sequence[str],
) -> list[int]:
    """Rows of the tokens of salient words in the user's own text after the first visual tokens.

    Salient are question words, the marks ``? ! :`` and every word that is no English stop word, so that other languages
    guide by all their words. A token counts if it shares a character with a salient word. The prompt's last row, which
    guides as well, is left to :func:`duet_server.plan.guiding_rows`.

    Where a user text cannot be found in the prompt, every text row after the first visual tokens is returned.

    Args:
        tokenizer: the one that made the prompt; character offsets are used where it gives any, else it decodes.
        prompt_text: the chat template's output, one mark of any number of tokens, or none, per image.
        prompt_token_ids: the final prompt, images expanded.
        visual_spans: rows ``[start, end)`` of each image's visual tokens, in any order.
        user_texts: the text parts of the user's messages in the prompt's order; white space at their ends is ignored.

    Returns:
        Rows of ``prompt_token_ids``, ascending, none of them visual; empty without images.
    """
    if not visual_spans:
        return []
    ids, spans = list(prompt_token_ids), sorted(visual_spans)
    aligned = _align_by_offsets(tokenizer, prompt_text, ids, spans) or _align_by_decoding(tokenizer, ids, spans)
    user_ranges = _find_in_order(aligned.text, user_texts)
    first_end = spans[0][1]
    if user_ranges is None:
        return [row for start, end in _text_runs(len(ids), spans) for row in range(start, end) if row >= first_end]
    salient = _salient_characters(aligned.text, user_ranges)
    return [row for row, start, end in aligned.rows if row >= first_end and salient.find(1, start, end) >= 0]


def is_salient(word: str) -> bool:
    """Whether a word, or one of the marks, guides."""
    return word.lower() not in STOP_WORDS


def _salient_characters(text: str, ranges: Iterable[tuple[int, int]]) -> bytearray:
    """1 for each character of a salient word or mark within the ranges, else 0."""
    salient = bytearray(len(text))
    for start, end in ranges:
        for match in WORD_OR_MARK.finditer(text, start, end):
            if is_salient(match.group()):
                salient[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    return salient


def _find_in_order(text: str, user_texts: Iterable[str]) -> list[tuple[int, int]] | None:
    """Where the user's texts lie, each searched from the end of the one before; None if one is missing."""
    ranges: list[tuple[int, int]] = []
    end = 0
    for user_text in map(str.strip, user_texts):  # templates strip
        start = text.find(user_text, end)
        if start < 0:
            return None
        end = start + len(user_text)
        ranges.append((start, end))
    return ranges


def _text_runs(num_tokens: int, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The rows ``[start, end)`` before, between and after the visual spans; a run may be empty."""
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), num_tokens]
    return zip(starts, ends, strict=True)


def _align_by_offsets(
    tokenizer: Any, text: str, ids: list[int], spans: Sequence[tuple[int, int]]
) -> AlignedText | None:
    """Tokenize the text again for its offsets; None without offsets, or if the ids are not those of the prompt."""
    for add_special_tokens in (False, True):  # chat templates tend to write BOS themselves
        try:
            encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        except (NotImplementedError, TypeError, ValueError):  # how the kinds of tokenizer say that they have no offsets
            return None
        rows = _final_rows(encoded["input_ids"], ids, spans)
        offsets = encoded.get("offset_mapping")
        if rows is not None and offsets is not None:
            aligned = zip(rows, offsets, strict=True)
            return AlignedText(text, [(row, *offset) for row, offset in aligned if row is not None])
    return None


def _final_rows(encoded_ids: list[int], ids: list[int], spans: Sequence[tuple[int, int]]) -> list[int | None] | None:
    """The final row of each token of the un-expanded prompt, None for a mark's; None altogether if text differs."""
    num_text_tokens = len(ids) - sum(end - start for start, end in spans)
    mark_len, remainder = divmod(len(encoded_ids) - num_text_tokens, len(spans))
    if remainder:
        return None
    rows: list[int | None] = []
    for start, end in _text_runs(len(ids), spans):
        if encoded_ids[len(rows) : len(rows) + end - start] != ids[start:end]:
            return None
        rows += [*range(start, end), *[None] * mark_len]
    return rows[: len(encoded_ids)]  # no mark follows the last run


def _align_by_decoding(tokenizer: Any, ids: list[int], spans: Sequence[tuple[int, int]]) -> AlignedText:
    """Decode the prompt's text rows token by token; an image reads as ``IMAGE_BREAK``."""
    pieces: list[str] = []
    rows: list[tuple[int, int, int]] = []
    position = 0
    for start, end in _text_runs(len(ids), spans):
        row = start
        for num_tokens, piece in _decoded_pieces(tokenizer, ids[start:end]):
            rows += [(row + i, position, position + len(piece)) for i in range(num_tokens)]
            row += num_tokens
            position += len(piece)
            pieces.append(piece)
        pieces.append(IMAGE_BREAK)
        position += len(IMAGE_BREAK)
    return AlignedText("".join(pieces), rows)


def _decoded_pieces(tokenizer: Any, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield ``(number of tokens, the text they add)``; tokens that share a character come together."""
    cleanup = "clean_up_tokenization_spaces"  # would drop spaces that the prompt holds
    options = {cleanup: False} if hasattr(tokenizer, cleanup) else {}
    context: list[int] = []  # the piece before: without one, decoders strip a leading space
    pending: list[int] = []
    for i, token_id in enumerate(ids, start=1):
        pending.append(token_id)
        known = tokenizer.decode(context, **options) if context else ""
        piece = tokenizer.decode([*context, *pending], **options)[len(known) :]
        if piece.endswith(INCOMPLETE) and len(pending) < MAX_TOKENS_PER_PIECE and i < len(ids):
            continue
        yield len(pending), piece
        context, pending = pending, []
