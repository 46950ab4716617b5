"""Learned and guiding tokens, token by token, and a single turn's prompt against a server's prompt."""

from __future__ import annotations

from functools import cache
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast

from duet_server.guiding import salient_rows
from duet_server.plan import GUIDE_CHOICES, guiding_rows, make_layout
from duet_training.conversations import IGNORED, EncodedConversation, encode, truncate
from duet_training.records import BadDataError, Turn
from tests.golden_cases import IMAGE_TOKEN_ID, checkpoint_path

LLAVA_HF = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
WITH_EOS = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WITH_EOS_AND_LINES = (
    "{% for message in messages %}|{{ message['role'] }}|\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}|assistant|\n{% endif %}"
)
TEMPLATES = {"llava_hf": LLAVA_HF, "with_eos": WITH_EOS, "with_eos_and_lines": WITH_EOS_AND_LINES}
each_template = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())


@cache
def byte_processor(template: str = LLAVA_HF) -> LlavaProcessor:
    """One token per byte."""
    processor = AutoProcessor.from_pretrained(checkpoint_path("llava_mha"))
    processor.chat_template = template
    return processor


@cache
def bpe_processor(template: str = LLAVA_HF) -> LlavaProcessor:
    """A word's token includes the space before it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), bos_token="<s>", eos_token="</s>")
    return LlavaProcessor(byte_processor().image_processor, tokenizer, patch_size=14, chat_template=template)


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<unk>", "<s>", "</s>", "<image>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["USER: What is the cat? ASSISTANT: A big cat.|assistant|\nuser"] * 9, trainer)
    return tokenizer


PROCESSORS = {"bytes": byte_processor, "bpe": bpe_processor}
each_processor = pytest.mark.parametrize("make_processor", PROCESSORS.values(), ids=PROCESSORS.keys())


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if idx % 2 else "user", text) for idx, text in enumerate(texts))


def runs(processor, ids, marked) -> list[str]:
    """The text of each run of marked tokens."""
    groups = groupby(zip(ids, marked, strict=True), key=lambda pair: bool(pair[1]))
    return [processor.tokenizer.decode([token for token, _ in group]) for key, group in groups if key]


def learnt(processor, encoded: EncodedConversation) -> list[str]:
    assert all(label in (IGNORED, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))
    return runs(processor, encoded.input_ids, [label != IGNORED for label in encoded.labels])


def guiding(processor, encoded: EncodedConversation, text: str) -> list[str]:
    return runs(processor, encoded.input_ids, encoded.guides[text])


def text_of(processor, encoded: EncodedConversation) -> str:
    return processor.tokenizer.decode(encoded.input_ids, clean_up_tokenization_spaces=False)


CAT = turns("<image>\nWhat is it?", "A cat.")
TWO = turns("<image>\nWhat is the cat?", "A cat. Is it?", "Is it big?", "Yes.")
TWO_WITH_LINES = (
    "|user|\n<image>What is the cat?</s>\n|assistant|\nA cat. Is it?</s>\n|user|\nIs it big?</s>\n|assistant|\nYes.</s>"
)


# ---- text and labels ----


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAVA_HF, "USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"),
        (WITH_EOS, "<s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"),
        (WITH_EOS_AND_LINES, "|user|\n<image>What is it?</s>\n|assistant|\nA cat.</s>"),
    ],
    ids=TEMPLATES.keys(),
)
@each_processor
def test_text_and_labels_of_one_turn(make_processor, template, text):
    processor = make_processor(template)
    encoded = encode(processor, CAT)
    assert text_of(processor, encoded) == text
    assert learnt(processor, encoded) == ["A cat.</s>" if template is WITH_EOS_AND_LINES else " A cat.</s>"]
    assert encoded.input_ids.count(processor.image_token_id) == 1


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAVA_HF, "USER: <image>\nWhat is the cat? ASSISTANT: A cat. Is it?</s>USER: Is it big? ASSISTANT: Yes.</s>"),
        (
            WITH_EOS,
            "<s>USER: <image>\nWhat is the cat? ASSISTANT: A cat. Is it?</s>USER: Is it big? ASSISTANT: Yes.</s>",
        ),
        (WITH_EOS_AND_LINES, TWO_WITH_LINES),
    ],
    ids=TEMPLATES.keys(),
)
@each_processor
def test_text_and_labels_of_two_turns(make_processor, template, text):
    processor = make_processor(template)
    encoded = encode(processor, TWO)
    assert text_of(processor, encoded) == text
    space = "" if template is WITH_EOS_AND_LINES else " "
    assert learnt(processor, encoded) == [f"{space}A cat. Is it?</s>", f"{space}Yes.</s>"]


def test_golden_tokens():
    encoded = encode(byte_processor(WITH_EOS), turns("<image>\nWhat?", "Hi"))
    prompt = [1, 57, 55, 41, 54, 30, 225, 4, 203, 59, 76, 69, 88, 35, 225, 37, 55, 55, 45, 55, 56, 37, 50, 56, 30]
    answer = [225, 44, 77, 2]
    assert encoded.input_ids == prompt + answer
    assert encoded.labels == [IGNORED] * len(prompt) + answer


@pytest.mark.parametrize("answer", ["A cat.", " A cat.\n", "A cat.</s>", "A cat. </s> "])
@each_template
def test_an_answer_has_one_eos_and_no_space_at_its_ends(template, answer):
    processor = byte_processor(template)
    assert encode(processor, turns("<image>\nWhat is it?", answer)) == encode(processor, CAT)


@pytest.mark.parametrize(
    ("question", "prompt"),
    [
        ("<image>\nWhat is it?", "<s>USER: <image>\nWhat is it? "),
        ("What is it?\n<image>", "<s>USER: <image>\nWhat is it? "),
        ("What is\n<image>it?", "<s>USER: <image>\nWhat is\nit? "),
        ("<image>", "<s>USER: <image>\n "),
        ("<image>\n<image>\nWhich?", "<s>USER: <image>\n<image>\nWhich? "),
        ("One: <image>\nTwo: <image>", "<s>USER: One:<image>\nTwo:<image>\n "),
    ],
    ids=["first", "last", "within", "alone", "adjacent", "interleaved"],
)
def test_a_single_picture_comes_first_and_several_stay_at_their_marks(question, prompt):
    processor = byte_processor(WITH_EOS)
    assert text_of(processor, encode(processor, turns(question, "A"))) == f"{prompt}ASSISTANT: A</s>"


def test_an_image_token_that_is_no_mark_is_bad_data():
    processor = byte_processor("{% for message in messages %}<image>{% endfor %}")
    with pytest.raises(BadDataError, match="2 image tokens '<image>' for 1 <image> marks"):
        encode(processor, CAT)


def test_a_template_that_rewrites_its_text_is_refused():
    processor = byte_processor("{{ messages | length }}")
    with pytest.raises(ValueError, match="the chat template does not continue '1' but renders '2'"):
        encode(processor, CAT)


# ---- guiding rows ----


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("all", ["\nWhat is the cat? ASSISTANT:", "USER: Is it big? ASSISTANT:"]),
        ("salient", ["What", "cat?", ":", "big?", ":"]),
        ("last", [":", ":"]),
    ],
)
def test_answers_never_guide(text, rows):
    processor = byte_processor()
    assert guiding(processor, encode(processor, TWO), text) == rows


def test_a_question_is_not_looked_for_in_the_answer_before_it():
    processor = byte_processor()
    encoded = encode(processor, turns("<image>\nthe", "big cat", "big cat", "A"))
    assert guiding(processor, encoded, "salient") == [":", "big", "cat", ":"]


@pytest.mark.parametrize("answer", ["A", "ASSISTANT", "USER: What?"])
def test_an_answer_makes_no_word_of_the_templates_salient(answer):
    processor = byte_processor()
    encoded = encode(processor, turns("<image>\nWhat?", answer, "the big one", answer))
    assert guiding(processor, encoded, "salient") == ["What?", ":", "big", "one", ":"]


@pytest.mark.parametrize(
    ("text", "rows"),
    [("all", ["\nIs it big? ASSISTANT:"]), ("salient", ["big?", ":"]), ("last", [":"])],
)
def test_nothing_before_the_first_picture_guides(text, rows):
    processor = byte_processor()
    encoded = encode(processor, turns("What cat?", "A cat.", "<image>\nIs it big?", "Yes."))
    assert guiding(processor, encoded, text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("all", ["\nWhat? ASSISTANT:", "USER:", "\nBig? ASSISTANT:"]),
        ("salient", ["What?", ":", "Big?", ":"]),
        ("last", [":", ":"]),
    ],
)
def test_guiding_rows_with_a_picture_in_every_turn(text, rows):
    processor = byte_processor()
    encoded = encode(processor, turns("<image>\nWhat?", "A cat.", "<image>\nBig?", "Yes."))
    assert [run.strip(" ") for run in guiding(processor, encoded, text)] == rows


def test_without_pictures_nothing_guides():
    encoded = encode(byte_processor(), turns("What cat?", "A cat."))
    assert not any(any(rows) for rows in encoded.guides.values())


# ---- a server's view of the same chat ----


def served(processor, parts: list[dict], num_visual: int) -> tuple[list[int], dict[str, list[int]]]:
    """A chat completion's prompt with expanded images, and its guiding rows for every choice of `guide`."""
    chat = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]:
        is_picture = token == processor.image_token_id
        spans += [(len(ids), len(ids) + num_visual)] if is_picture else []
        ids += [token] * (num_visual if is_picture else 1)
    texts = [part["text"] for part in parts if part["type"] == "text"]
    salient = salient_rows(processor.tokenizer, text, ids, spans, texts)
    layout = make_layout(len(ids), spans)
    return ids, {choice: list(guiding_rows(layout, choice, salient)) for choice in GUIDE_CHOICES}


def expand(processor, encoded: EncodedConversation, num_visual: int) -> tuple[list[int], dict[str, list[int]]]:
    """The tokens up to the answer with expanded pictures, and the guiding rows of the whole conversation."""
    repeats = [num_visual if token == processor.image_token_id else 1 for token in encoded.input_ids]

    def expanded(column: list) -> list:
        return [value for value, num in zip(column, repeats, strict=True) for _ in range(num)]

    is_prompt = [label == IGNORED for label in expanded(encoded.labels)]
    prompt = expanded(encoded.input_ids)[: is_prompt.index(False)]
    guides = encoded.guides.items()
    return prompt, {choice: [row for row, is_guide in enumerate(expanded(rows)) if is_guide] for choice, rows in guides}


IMAGE = {"type": "image"}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("<image>\nWhat is the cat?", [IMAGE, text_part("What is the cat?")]),
        ("What is the cat?\n<image>", [IMAGE, text_part("What is the cat?")]),
        ("<image>", [IMAGE]),
        ("<image><image>Which cat?", [IMAGE, IMAGE, text_part("Which cat?")]),
        ("See: <image> or <image> big?", [text_part("See:"), IMAGE, text_part("or"), IMAGE, text_part("big?")]),
        ("<image>猫: größte é?", [IMAGE, text_part("猫: größte é?")]),
        ("Who are you?", [text_part("Who are you?")]),
    ],
    ids=["first", "last", "alone", "two", "interleaved", "unicode", "text_only"],
)
@each_template
@each_processor
def test_a_single_turn_is_the_servers_prompt(make_processor, template, question, parts):
    processor = make_processor(template)
    encoded = encode(processor, turns(question, "A big cat: what else?"))
    assert expand(processor, encoded, 5) == served(processor, parts, 5)


@settings(max_examples=60)
@given(
    make_processor=st.sampled_from(list(PROCESSORS.values())),
    template=st.sampled_from(list(TEMPLATES.values())),
    question=st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<" not in text),
    answer=st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<" not in text),
)
def test_any_single_turn_is_the_servers_prompt(make_processor, template, question, answer):
    processor = make_processor(template)
    encoded = encode(processor, turns(f"<image>\n{question}", answer))
    assert expand(processor, encoded, 3) == served(processor, [IMAGE, text_part(question.strip())], 3)


# ---- length ----


def cut(*texts: str, max_length: int, num_visual: int = 10) -> EncodedConversation:
    return truncate(encode(byte_processor(), turns(*texts)), IMAGE_TOKEN_ID, num_visual, max_length)


def test_a_conversation_that_fits_is_unchanged():
    whole = encode(byte_processor(), CAT)
    num_rows = len(whole.input_ids) + 9
    assert truncate(whole, IMAGE_TOKEN_ID, 10, num_rows) is whole


def test_a_long_conversation_is_cut_at_its_end():
    whole = encode(byte_processor(), TWO)
    num_rows = len(whole.input_ids) + 9
    for num_cut in (1, 5, 30):
        short = truncate(whole, IMAGE_TOKEN_ID, 10, num_rows - num_cut)
        assert short.input_ids == whole.input_ids[:-num_cut]
        assert short.labels == whole.labels[:-num_cut]
        assert short.guides == {text: rows[:-num_cut] for text, rows in whole.guides.items()}


def test_one_token_of_an_answer_is_enough():
    prompt = "USER: <image>\nWhat is it? ASSISTANT:"
    num_prompt_rows = len(prompt) - len("<image>") + 10
    short = cut("<image>\nWhat is it?", "A cat.", max_length=num_prompt_rows + 1)
    assert learnt(byte_processor(), short) == [" "]
    with pytest.raises(BadDataError) as raised:
        cut("<image>\nWhat is it?", "A cat.", max_length=num_prompt_rows)
    assert str(raised.value) == (
        f"the conversation has {num_prompt_rows + 8} tokens and no answer after its last picture "
        f"within the first {num_prompt_rows}, expected a shorter conversation or a larger max_length"
    )


@pytest.mark.parametrize("max_length", range(30, 80, 10))
def test_no_picture_is_cut(max_length):
    """The first answer ends at row 30; the second picture and the question about it take the next 50 rows."""
    texts = ("Hi there?", "Yes?", "<image>", "A")
    with pytest.raises(BadDataError, match="no answer after its last picture"):
        cut(*texts, max_length=max_length, num_visual=50)


def test_text_alone_is_cut_to_an_answer():
    whole = encode(byte_processor(), turns("Hi", "Yes"))
    assert learnt(byte_processor(), cut("Hi", "Yes", max_length=len(whole.input_ids) - 2)) == [" Ye"]
    with pytest.raises(BadDataError, match="and no answer within the first 10, expected"):
        cut("Hi", "Yes", max_length=10)
