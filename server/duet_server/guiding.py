"""The prompt rows that rank visual tokens under the guide ``salient``: the words that carry the user's meaning.

A stop-word list decides which words these are. A part-of-speech tagger would be larger than the server itself, and
would decide differently only in a few cases (modal verbs, numerals).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import regex

# English function words: NLTK's stop words (nltk.org, corpus "stopwords") without the question words, which carry the
# question, and without contractions, since their parts are in the list.
STOP_WORDS = frozenset(
    """
    a about above after again against ain all am an and any are aren as at be because been before being below
    between both but by can couldn d did didn do does doesn doing don down during each few for from further had
    hadn has hasn have haven having he her here hers herself him himself his i if in into is isn it its itself
    just ll m ma me mightn more most mustn my myself needn no nor not now o of off on once only or other our
    ours ourselves out over own re s same shan she should shouldn so some such t than that the their theirs them
    themselves then there these they this those through to too under until up ve very was wasn we were weren
    while will with won wouldn y you your yours yourself yourselves
    """.split()  # noqa: SIM905 (a list would take 145 lines)
)

# Letters with their combining marks and joiners, so that words of every script stay whole. Chinese and Thai have no
# spaces, so a run of them is one word. An apostrophe splits a word: "what's" is "what" and the stop word "s".
WORD_OR_MARK = regex.compile(r"[\p{L}\p{N}\p{M}\u200c\u200d]+|[?!:？！：؟]")

# Replaces an image in decoded text, so that no match extends across an image (U+FFFC, object replacement character).
IMAGE_BREAK = "\ufffc"

# Decoders return this for a character that later tokens complete (U+FFFD). Real text may contain it too, so the number
# of tokens in one piece is limited.
INCOMPLETE = "\ufffd"
MAX_TOKENS_PER_PIECE = 8


@dataclass(frozen=True, slots=True)
class AlignedText:
    """A prompt's text, and the characters ``[start, end)`` of each text row, in ascending order of rows."""

    text: str
    rows: list[tuple[int, int, int]]  # (row, start, end); a row without characters has start == end


def salient_rows(
    tokenizer: Any,
    prompt_text: str,
    prompt_token_ids: Sequence[int],
    visual_spans: Sequence[tuple[int, int]],
    user_texts: Sequence[str],
) -> list[int]:
    """The salient rows after a prompt's first image, found by ``align`` and ``pick``; empty without images.

    Args:
        tokenizer, prompt_text, prompt_token_ids, visual_spans: as for ``align``.
        user_texts: as for ``pick``.

    Returns:
        Rows of ``prompt_token_ids``, ascending, none of them visual.
    """
    if not visual_spans:
        return []
    aligned = align(tokenizer, prompt_text, prompt_token_ids, visual_spans)
    return pick(aligned, user_texts, first_row=min(end for _, end in visual_spans))


def align(
    tokenizer: Any, prompt_text: str, prompt_token_ids: Sequence[int], visual_spans: Sequence[tuple[int, int]]
) -> AlignedText:
    """Find the characters that each text row of a prompt with images stands for.

    Args:
        tokenizer: the tokenizer that made the prompt. Its character offsets are used if it has any; otherwise it
            decodes the rows.
        prompt_text: the chat template's output. The mark of an image may have any number of tokens, or none.
        prompt_token_ids: the final prompt, with all visual tokens of each image.
        visual_spans: rows ``[start, end)`` of each image's visual tokens, in any order.
    """
    ids, spans = list(prompt_token_ids), sorted(visual_spans)
    return _align_by_offsets(tokenizer, prompt_text, ids, spans) or _align_by_decoding(tokenizer, ids, spans)


def pick(aligned: AlignedText, user_texts: Iterable[str], first_row: int) -> list[int]:
    """The rows from ``first_row`` on that belong to salient words of the user's own text.

    Question words, the marks ``? ! :`` and all words that are not English stop words are salient. In other languages
    every word is salient. A row is picked if it shares a character with a salient word. If a user text is not found in
    the prompt, all rows are picked. :func:`duet_server.plan.guiding_rows` adds the prompt's last row, which always
    guides.

    Args:
        aligned: the prompt's text.
        user_texts: the text parts of the user's messages, in the prompt's order; white space at their ends is ignored.
        first_row: the first row after the first image; earlier rows attend to no visual token.
    """
    user_ranges = _find_in_order(aligned.text, user_texts)
    rows = [aligned_row for aligned_row in aligned.rows if aligned_row[0] >= first_row]
    if user_ranges is None:
        return [row for row, _, _ in rows]
    salient = _salient_characters(aligned.text, user_ranges)
    return [row for row, start, end in rows if salient.find(1, start, end) >= 0]


def is_salient(word: str) -> bool:
    """Whether a word or mark is salient."""
    return word.lower() not in STOP_WORDS


def _salient_characters(text: str, ranges: Iterable[tuple[int, int]]) -> bytearray:
    """One byte per character: 1 in salient words and marks within the ranges, else 0."""
    salient = bytearray(len(text))
    for start, end in ranges:
        for match in WORD_OR_MARK.finditer(text, start, end):
            if is_salient(match.group()):
                salient[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    return salient


def _find_in_order(text: str, user_texts: Iterable[str]) -> list[tuple[int, int]] | None:
    """The ranges of the user's texts, each found after the end of the one before; None if one is missing."""
    ranges: list[tuple[int, int]] = []
    end = 0
    for user_text in map(str.strip, user_texts):  # chat templates strip white space
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
    """Tokenize the text again for its offsets; None without offsets, or if the ids differ from the prompt's."""
    for add_special_tokens in (False, True):  # most chat templates write BOS themselves
        try:
            encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True)
        except (NotImplementedError, TypeError, ValueError):  # a tokenizer without offsets raises one of these
            return None
        rows = _final_rows(encoded["input_ids"], ids, spans)
        offsets = encoded.get("offset_mapping")
        if rows is not None and offsets is not None:
            aligned = zip(rows, offsets, strict=True)
            return AlignedText(text, [(row, *offset) for row, offset in aligned if row is not None])
    return None


def _final_rows(encoded_ids: list[int], ids: list[int], spans: Sequence[tuple[int, int]]) -> list[int | None] | None:
    """The final row of each token of the unexpanded prompt, None for an image mark; None if the texts differ."""
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
    """Decode the prompt's text rows token by token; an image becomes ``IMAGE_BREAK``."""
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
    """Yield ``(number of tokens, the text they add)``. Tokens that share a character form one piece."""
    cleanup = "clean_up_tokenization_spaces"  # would drop spaces of the prompt
    options = {cleanup: False} if hasattr(tokenizer, cleanup) else {}
    context: list[int] = []  # the previous piece: without it, decoders strip a leading space
    pending: list[int] = []
    for i, token_id in enumerate(ids, start=1):
        pending.append(token_id)
        known = tokenizer.decode(context, **options) if context else ""
        piece = tokenizer.decode([*context, *pending], **options)[len(known) :]
        if piece.endswith(INCOMPLETE) and len(pending) < MAX_TOKENS_PER_PIECE and i < len(ids):
            continue
        yield len(pending), piece
        context, pending = pending, []
