"""Samples of a dataset, and problems that are found only after tokenization."""

from __future__ import annotations

from functools import cache

import pytest
from transformers import AutoProcessor, LlavaProcessor
from transformers.trainer_pt_utils import LengthGroupedSampler

from duet_training.conversations import encode, truncate
from duet_training.dataset import ConversationDataset
from duet_training.records import Problem, Record, Turn
from tests.golden_cases import IMAGE_TOKEN_ID, checkpoint_path

CAT = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat."))
LONG = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", "A cat. " * 50))
TEXT_ONLY = (Turn("user", "Who are you?"), Turn("assistant", "A cat."))
RECORDS = [
    Record(3, "cat", ("a.png",), CAT),
    Record(4, "long", ("b.png",), LONG),
    Record(9, "text", (), TEXT_ONLY),
]


@cache
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(checkpoint_path("llava_mha"))


def dataset(max_length: int = 1000) -> ConversationDataset:
    return ConversationDataset(RECORDS, processor(), tokens_per_picture=20, max_length=max_length)


@pytest.mark.parametrize("idx", [0, 2], ids=["picture", "text_only"])
def test_a_sample_has_tokens_guides_and_paths(idx):
    record = RECORDS[idx]
    encoded = encode(processor(), record.turns)
    assert dataset()[idx] == {
        "index": record.index,
        "id": record.id,
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "guides": encoded.guides,
        "image_paths": record.image_paths,
    }


def test_a_long_sample_is_cut():
    short = truncate(encode(processor(), LONG), IMAGE_TOKEN_ID, 20, 100)
    assert dataset(max_length=100)[1]["input_ids"] == short.input_ids
    assert len(short.input_ids) == 100 - 19


def test_a_sample_without_room_for_its_answer_is_a_problem():
    assert dataset(max_length=40)[0] == {"index": 3, "id": "cat", "problem": Problem(3, "cat", TOO_LONG)}


TOO_LONG = (
    "the conversation has 58 tokens and no answer after its last picture within the first 40, "
    "expected a shorter conversation or a larger max_length"
)


def test_lengths_are_characters_by_four_and_pictures():
    assert len(dataset()) == 3
    assert dataset().lengths == [(19 + 6) // 4 + 20, (19 + 350) // 4 + 20, (12 + 6) // 4]
    assert dataset(max_length=50).lengths == [26, 50, 4]


def test_samples_of_like_length_can_be_batched():
    assert sorted(LengthGroupedSampler(2, lengths=dataset().lengths)) == [0, 1, 2]
