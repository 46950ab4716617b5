"""The guiding rows under `guide: salient`, with every kind of tokenizer and without an engine."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from duet_server.guiding import is_salient, salient_rows
from tests.golden_cases import IMAGE_TOKEN_ID, checkpoint_path, golden_cases

CORPUS = [
    "USER: <image>\nWhat color is the circle? ASSISTANT: The circle is red.",
    "How many cats are there in the picture? Where is the small dog?",
    "describe the picture, please! which shapes are left of the blue square?",
]


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, by default with BOS in front."""
    return PreTrainedTokenizerFast.from_pretrained(checkpoint_path("llava_mha"))


@cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, like GPT-2's, Qwen's and Llama 3's: a word's token includes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<image>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram with SentencePiece's pieces: words start with U+2581."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<image>"], unk_token="<unk>")
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in CORPUS * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@cache
def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 2's: BPE over the whole text. Tokens may span words, and unknown characters become byte tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "<image>", *byte_tokens])
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in CORPUS * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


class WithoutOffsets:
    """A tokenizer that encodes and decodes like another one, but refuses to give offsets."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, refusal: type[Exception] = NotImplementedError) -> None:
        self.tokenizer = tokenizer
        self.refusal = refusal
        self.clean_up_tokenization_spaces = tokenizer.clean_up_tokenization_spaces

    def __call__(self, text: str, **options: object) -> object:
        if "return_offsets_mapping" in options:
            raise self.refusal
        return self.tokenizer(text, **options)

    def decode(self, ids: list[int], **options: object) -> str:
        return self.tokenizer.decode(ids, **options)


class MistralLike:
    """The interface of vLLM's tokenizer for Mistral's own format: no options for offsets or decoding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, add_special_tokens: bool = True) -> object:
        return self.tokenizer(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


class OffsetsOnly:
    """A tokenizer that encodes like another one, but must not be asked to decode."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, **options: object) -> object:
        return self.tokenizer(text, **options)


class WithoutText(WithoutOffsets):
    """A tokenizer that gives neither offsets nor text that resembles the prompt."""

    def decode(self, ids: list[int], **options: object) -> str:
        return "~" * len(ids)


def expand(ids: list[int], image_id: int, num_visual: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """The final prompt and its visual spans; the i-th image has `num_visual[i]` rows."""
    final: list[int] = []
    spans: list[tuple[int, int]] = []
    for token_id in ids:
        if token_id != image_id:
            final.append(token_id)
            continue
        count = num_visual[len(spans)]
        spans.append((len(final), len(final) + count))
        final += [image_id] * count
    assert len(spans) == len(num_visual), f"{len(spans)=} {num_visual=}"
    return final, spans


def salient_of(tokenizer, prompt: str, user_texts: list[str], num_visual: list[int], asked=None) -> str:
    """The text of the salient rows, with a space between runs of adjacent rows. `asked` replaces the tokenizer."""
    ids = tokenizer(prompt)["input_ids"]
    final, spans = expand(ids, tokenizer.convert_tokens_to_ids("<image>"), num_visual)
    rows = salient_rows(asked or tokenizer, prompt, final, spans, user_texts)
    assert rows == sorted(set(rows))
    runs: list[list[int]] = []
    for row in rows:
        if not runs or row != runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(row)
    texts = [tokenizer.decode([final[row] for row in run], clean_up_tokenization_spaces=False) for run in runs]
    return " ".join(text.strip() for text in texts)


def user_prompt(text: str, num_images: int = 1) -> str:
    return f"USER: {'<image>' * num_images}\n{text} ASSISTANT:"


# ---- the golden prompt ----

QUESTION_ROWS = [9, 10, 11, 12, 14, 15, 16, 17, 18, *range(27, 34)]  # "What color circle?" before expansion


@pytest.mark.parametrize("case", [case for case in golden_cases() if case.salient_prompt_indices], ids=str)
@pytest.mark.parametrize("bos", ["", "<s>"], ids=["bos_added", "bos_in_template"])
def test_golden_question_guides_by_the_authors_rows(case, bos):
    start = case.image_start
    spans = [(start, start + case.num_entering)]
    rows = salient_rows(
        OffsetsOnly(byte_tokenizer()), bos + case.prompt, case.expanded_token_ids, spans, [case.question]
    )
    assert [*rows, len(case.expanded_token_ids) - 1] == case.guiding_rows
    assert [row - case.num_entering + 1 for row in rows] == QUESTION_ROWS


# ---- words ----


@pytest.mark.parametrize("word", ["who", "What", "WHERE", "when", "why", "how", "which", "whom", "whose"])
def test_question_words_are_salient(word):
    assert is_salient(word)


@pytest.mark.parametrize(
    "word", ["circle", "color", "left", "right", "men", "face", "small", "Anna", "count", "2", "?"]
)
def test_content_words_are_salient(word):
    assert is_salient(word)


@pytest.mark.parametrize("word", ["is", "The", "of", "are", "a", "in", "there", "it", "under", "does"])
def test_function_words_are_not_salient(word):
    assert not is_salient(word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's in the man's hand?", "What man hand?"),
        ("Isn’t this black-and-white: yes!", "black white: yes!"),
        ("Is it (the one), or is it not.", "one"),
        ("", ""),
        ("Wo ist die größte Katze?", "Wo ist die größte Katze?"),
        ("图中有几只猫？", "图中有几只猫？"),
        ("चित्र में क्या है?", "चित्र में क्या है?"),
        ("Welche Ca\u0301fes", "Welche Ca\u0301fes"),
    ],
    ids=["apostrophe", "hyphen", "pronouns", "empty", "german", "chinese", "hindi", "decomposed"],
)
@pytest.mark.parametrize("make_tokenizer", [byte_tokenizer, bpe_tokenizer], ids=["bytes", "bpe"])
def test_words_of_a_question(make_tokenizer, text, expected):
    assert salient_of(make_tokenizer(), user_prompt(text), [text], [5]) == expected


# ---- where the user's text lies ----


def test_only_user_text_of_every_turn_guides():
    prompt = "Answer well. USER: <image>\nWhat color? ASSISTANT: Blue color. USER: Is the cat big? ASSISTANT:"
    texts = ["What color?", "Is the cat big?"]
    assert salient_of(bpe_tokenizer(), prompt, texts, [7]) == "What color? cat big?"


def test_text_before_the_first_image_does_not_guide():
    prompt = "USER: Look at the cat: <image>\nand name its color. ASSISTANT:"
    texts = ["Look at the cat:", "and name its color."]
    assert salient_of(bpe_tokenizer(), prompt, texts, [7]) == "name color"


def test_texts_between_and_after_images_guide():
    prompt = "USER: <image><image>first cat:<image>second cat: ASSISTANT:"
    texts = ["first cat:", "second cat:"]
    assert salient_of(bpe_tokenizer(), prompt, texts, [3, 4, 2]) == "first cat: second cat:"


def test_repeated_user_text_is_found_once_per_turn():
    prompt = "USER: Why? ASSISTANT: So. USER: <image>\nWhy? ASSISTANT:"
    ids, spans = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [6])
    rows = salient_rows(byte_tokenizer(), prompt, ids, spans, ["Why?", "Why?"])
    question = spans[0][1] + 1  # after the line break
    assert rows == list(range(question, question + 4))


def test_template_may_strip_user_text():
    text = "  What color?\n\n"
    assert salient_of(bpe_tokenizer(), user_prompt(text.strip()), [text], [5]) == "What color?"


def test_image_mark_that_the_user_wrote_is_no_word():
    text = "cat: <image> dog?"
    assert salient_of(bpe_tokenizer(), f"USER: <image>\n{text} ASSISTANT:", [text], [2, 3]) == "cat: dog?"


def test_without_images_nothing_guides():
    prompt = "USER: What color? ASSISTANT:"
    assert salient_rows(byte_tokenizer(), prompt, byte_tokenizer()(prompt)["input_ids"], [], ["What color?"]) == []


def test_spans_may_come_in_any_order():
    prompt = "USER: <image>cat<image>dog ASSISTANT:"
    ids, spans = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [3, 5])
    cat, dog = spans[0][1], spans[1][1]
    rows = salient_rows(byte_tokenizer(), prompt, ids, spans[::-1], ["cat", "dog"])
    assert rows == [cat, cat + 1, cat + 2, dog, dog + 1, dog + 2]


# ---- tokenizers ----


def test_bpe_tokenizer_merges_words_with_their_space():
    tokens = bpe_tokenizer().convert_ids_to_tokens(bpe_tokenizer()("the circle")["input_ids"])
    assert "Ġcircle" in tokens


@pytest.mark.parametrize("view", [OffsetsOnly, WithoutOffsets, MistralLike])
@pytest.mark.parametrize("make_tokenizer", [byte_tokenizer, bpe_tokenizer, unigram_tokenizer])
def test_tokenizers_agree_on_the_words(make_tokenizer, view):
    tokenizer = make_tokenizer()
    prompt = "USER: <image> How many cats are there in the picture? ASSISTANT:"
    salient = salient_of(tokenizer, prompt, ["How many cats are there in the picture?"], [9], view(tokenizer))
    assert salient == "How many cats picture?"


def test_token_across_two_words_guides_if_one_is_salient():
    tokenizer = byte_fallback_tokenizer()
    text = "How many cats are there in the picture?"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(user_prompt(text))["input_ids"])
    assert {"▁cats▁are▁", "there▁in▁the▁picture"} <= set(tokens)
    assert salient_of(tokenizer, user_prompt(text), [text], [4]) == text


@pytest.mark.parametrize("view", [OffsetsOnly, WithoutOffsets, MistralLike])
@pytest.mark.parametrize("make_tokenizer", [byte_tokenizer, bpe_tokenizer, byte_fallback_tokenizer])
def test_every_byte_of_a_split_character_guides(make_tokenizer, view):
    tokenizer = make_tokenizer()
    prompt = "USER: <image>the 猫 of the é ASSISTANT:"
    ids, spans = expand(tokenizer(prompt)["input_ids"], tokenizer.convert_tokens_to_ids("<image>"), [4])
    rows = salient_rows(view(tokenizer), prompt, ids, spans, ["the 猫 of the é"])
    assert tokenizer.decode([ids[row] for row in rows]).replace(" ", "") == "猫é"
    if make_tokenizer is not bpe_tokenizer:  # its merges may join a space to the first byte
        assert len(rows) == len("猫é".encode())


@pytest.mark.parametrize("refusal", [NotImplementedError, TypeError, ValueError])
def test_tokenizer_that_refuses_offsets_decodes(refusal):
    text = "图中有几只猫？ What color is the big circle?"
    asked = WithoutOffsets(bpe_tokenizer(), refusal)
    salient = salient_of(bpe_tokenizer(), user_prompt(text, num_images=2), [text], [3, 5], asked)
    assert salient == "图中有几只猫？ What color big circle?"


def test_decoding_keeps_the_spaces_that_clean_up_would_drop():
    pieces = ["<unk>", "<image>", "▁big", "▁the", "▁dog", "▁?", "▁user"]
    model = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    model.add_special_tokens(["<image>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, clean_up_tokenization_spaces=True)
    assert tokenizer.decode(tokenizer("the dog ?")["input_ids"]) == "the dog?"
    prompt = "user <image> big the dog ? user"
    assert salient_of(tokenizer, prompt, ["big the dog ?"], [4], WithoutOffsets(tokenizer)) == "big dog ?"


def test_decoding_tells_a_real_replacement_character_from_half_of_another():
    prompt = "USER: <image>dog \ufffd<image>cat \ufffd of ASSISTANT:"
    ids, spans = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [3, 5])
    rows = salient_rows(WithoutOffsets(byte_tokenizer()), prompt, ids, spans, ["dog \ufffd", "cat \ufffd of"])
    assert rows == [spans[0][1] + i for i in range(3)] + [spans[1][1] + i for i in range(3)]


def test_decoding_needs_no_prompt_text():
    prompt = user_prompt("What color is the circle?")
    ids, spans = expand(bpe_tokenizer()(prompt)["input_ids"], bpe_tokenizer().convert_tokens_to_ids("<image>"), [6])
    texts = ["What color is the circle?"]
    with_text = salient_rows(bpe_tokenizer(), prompt, ids, spans, texts)
    assert salient_rows(bpe_tokenizer(), "", ids, spans, texts) == with_text != []


def test_tokens_that_expansion_adds_around_an_image_are_decoded():
    """Some processors write their own text next to the visual tokens, so the ids never match the template's."""
    tokenizer = byte_tokenizer()
    prompt = user_prompt("What color?")
    ids, [(start, end)] = expand(tokenizer(prompt)["input_ids"], IMAGE_TOKEN_ID, [6])
    framed = [*ids[:start], *tokenizer.encode("[", add_special_tokens=False), *ids[start:end]]
    framed += [*tokenizer.encode("] ?", add_special_tokens=False), *ids[end:]]
    rows = salient_rows(tokenizer, prompt, framed, [(start + 1, end + 1)], ["What color?"])
    question = end + 1 + len("] ?\n")
    assert rows == [question + i for i, char in enumerate("What color?") if char != " "]


def test_marks_of_several_tokens():
    tokenizer = bpe_tokenizer()
    before, between, after = "USER: ", "cat ", "What color is the circle?"
    prompt = f"{before}[PICTURE]{between}[PICTURE]{after}"
    mark = tokenizer("[PICTURE]")["input_ids"]
    parts = [tokenizer(part)["input_ids"] for part in (before, between, after)]
    assert len(mark) > 1
    assert tokenizer(prompt)["input_ids"] == [*parts[0], *mark, *parts[1], *mark, *parts[2]]
    ids = [*parts[0], *[0] * 8, *parts[1], *[0] * 8, *parts[2]]
    start = len(parts[0])
    second = start + 8 + len(parts[1])
    rows = salient_rows(tokenizer, prompt, ids, [(start, start + 8), (second, second + 8)], [between, after])
    assert tokenizer.decode([ids[row] for row in rows]) == "catWhat color circle?"


def test_images_without_a_mark_in_the_template():
    """Like PaliGemma's processor, which puts the visual tokens in front."""
    tokenizer = bpe_tokenizer()
    ids = [*[0] * 6, *tokenizer("What color is the circle?")["input_ids"]]
    asked = OffsetsOnly(tokenizer)
    rows = salient_rows(asked, "What color is the circle?", ids, [(0, 6)], ["What color is the circle?"])
    assert tokenizer.decode([ids[row] for row in rows]) == "What color circle?"


# ---- nothing to align ----


def test_user_text_that_the_prompt_lacks_lets_all_text_after_the_image_guide():
    prompt = "USER: <image>\nWhat color?<image> ASSISTANT:"
    ids, spans = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [3, 5])
    rows = salient_rows(byte_tokenizer(), prompt, ids, spans, ["Which shape?"])
    assert rows == [*range(spans[0][1], spans[1][0]), *range(spans[1][1], len(ids))]


def test_tokenizer_without_text_lets_all_text_after_the_image_guide():
    prompt = user_prompt("What color?")
    ids, [span] = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [5])
    rows = salient_rows(WithoutText(byte_tokenizer()), prompt, ids, [span], ["What color?"])
    assert rows == list(range(span[1], len(ids)))


@pytest.mark.parametrize("num_lost", range(1, 12))
def test_prompt_cut_short_lets_all_text_after_the_image_guide(num_lost):
    prompt = "USER: <image><image><image>What is it?"
    ids, spans = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [2, 3, 4])
    rows = salient_rows(byte_tokenizer(), prompt, ids[:-num_lost], spans, ["What is it?"])
    assert rows == list(range(spans[-1][1], len(ids) - num_lost))


# ---- any prompt ----

WORDS = st.sampled_from(
    [
        *[(word, True) for word in ("what", "猫", "größte", "dog", "42", "?", "：")],
        *[(word, False) for word in ("🙂", ",", "the", "Of", "it", "under", "\n")],
    ]
)
USER = st.tuples(st.just("user"), st.lists(WORDS, min_size=1, max_size=6))
IMAGE = st.tuples(st.just("image"), st.integers(1, 5))
TEMPLATE = st.tuples(st.just("template"), st.sampled_from(["|A| who |", "|Z|", "| "]))


@settings(max_examples=200)
@given(parts=st.lists(st.one_of(USER, IMAGE, TEMPLATE), max_size=10), decode=st.booleans())
def test_rows_are_exactly_those_of_salient_words_after_the_first_image(parts, decode):
    """With the byte tokenizer, rows can be counted: one per byte, one for BOS, and those of each image."""
    prompt, texts, spans, expected = "", [], [], []
    row = 1  # BOS
    for kind, content in parts:
        if kind == "image":
            prompt += "<image>"
            spans.append((row, row + content))
            row += content
            continue
        pieces = [("|", False), *((word + " ", salient) for word, salient in content)] if kind == "user" else []
        pieces = pieces or [(content, False)]  # the bar separates the words of one part from those of the next
        for piece, salient in pieces:
            word_len = len(piece.rstrip(" ").encode())
            expected += range(row, row + word_len) if salient and spans else []
            row += len(piece.encode())
            prompt += piece
        if kind == "user":
            texts.append("".join(piece for piece, _ in pieces[1:]))
    ids, expanded = expand(byte_tokenizer()(prompt)["input_ids"], IMAGE_TOKEN_ID, [end - start for start, end in spans])
    assert (expanded, len(ids)) == (spans, row)

    tokenizer = WithoutOffsets(byte_tokenizer()) if decode else byte_tokenizer()
    rows = salient_rows(tokenizer, prompt, ids, spans, texts)

    assert all(a < b for a, b in pairwise(rows))
    assert not any(start <= row < end for row in rows for start, end in spans)
    assert rows == expected


@settings(max_examples=100)
@given(
    tokenizer=st.sampled_from([byte_tokenizer, bpe_tokenizer, unigram_tokenizer, byte_fallback_tokenizer]),
    text=st.text(max_size=40),
    num_visual=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    decode=st.booleans(),
)
def test_any_text_gives_text_rows_after_the_first_image(tokenizer, text, num_visual, decode):
    made = tokenizer()
    prompt = user_prompt(text.replace("<image>", ""), len(num_visual))
    ids, spans = expand(made(prompt)["input_ids"], made.convert_tokens_to_ids("<image>"), num_visual)
    rows = salient_rows(WithoutOffsets(made) if decode else made, prompt, ids, spans, [text])
    assert rows == sorted(set(rows))
    assert all(spans[-1][1] <= row < len(ids) for row in rows)  # the images of this prompt are adjacent


# ---- weight ----


def test_import_is_light():
    heavy = {"torch", "vllm", "transformers", "numba", "bm25s", "jax"}
    code = (
        "import sys; before = set(sys.modules); import duet_server.guiding; "
        f"print(sorted({heavy!r} & (sys.modules.keys() - before)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
