"""Data in LLaVA's format: the records that are read, and the messages for all kinds of bad data."""

from __future__ import annotations

import json
import logging
import os

import pytest
from PIL import Image

from duet_training.records import BadDataError, Record, Turn, read_records

QUESTION, ANSWER = {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}
TEXT_ONLY = {"id": "text", "conversations": [{"from": "human", "value": "Who are you?"}, ANSWER]}


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures: ``a.png`` and ``train/b.png``; ``outside.png`` is next to the folder."""
    images = tmp_path / "images"
    (images / "train").mkdir(parents=True)
    for path in (images / "a.png", images / "train" / "b.png", tmp_path / "outside.png"):
        Image.new("RGB", (2, 2)).save(path)
    return images


def write(folder, content) -> str:
    path = folder.parent / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def row(image="a.png", *turns, **fields) -> dict:
    return {"id": "one", "image": image, "conversations": list(turns) or [QUESTION, ANSWER], **fields}


def human(value: str) -> dict:
    return {"from": "human", "value": value}


def problems_of(folder, bad) -> list[str]:
    """The problems of a record between two good ones."""
    records, problems = read_records(write(folder, [TEXT_ONLY, bad, row()]), folder, "skip")
    assert [record.index for record in records] == [0, 2]
    assert {problem.index for problem in problems} == {1}
    return [problem.text for problem in problems]


def test_one_picture_several_and_none(folder):
    rows = [row(), row(["train/b.png", "a.png"], human("<image> or <image>?"), ANSWER, id=7), TEXT_ONLY]
    records, problems = read_records(write(folder, rows), folder, "refuse")
    a, b = (os.path.join(folder, name) for name in ("a.png", "train/b.png"))
    answer = Turn("assistant", "A cat.")
    assert problems == []
    assert records == [
        Record(0, "one", (a,), (Turn("user", "<image>\nWhat is it?"), answer)),
        Record(1, "7", (b, a), (Turn("user", "<image> or <image>?"), answer)),
        Record(2, "text", (), (Turn("user", "Who are you?"), answer)),
    ]


def test_several_turns_and_a_picture_in_a_later_one(folder):
    turns = [human("Hello"), ANSWER, QUESTION, ANSWER]
    ((record,), _) = read_records(write(folder, [row("a.png", *turns)]), folder, "refuse")
    assert [turn.role for turn in record.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("image", ["./train/../a.png", "train//b.png"])
def test_paths_that_stay_inside_the_folder(folder, image):
    ((record,), _) = read_records(write(folder, [row(image)]), folder, "refuse")
    assert os.path.samefile(record.image_paths[0], folder / image)


def test_a_folder_of_links_may_lead_elsewhere(folder):
    (folder / "linked").symlink_to(folder.parent)
    ((record,), _) = read_records(write(folder, [row("linked/outside.png")]), folder, "refuse")
    assert record.image_paths == (str(folder / "linked" / "outside.png"),)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (row("gone.png"), "picture {folder}/gone.png is missing, expected a file"),
        (row("train"), "picture {folder}/train is missing, expected a file"),
        (
            row("../outside.png"),
            "picture '../outside.png' is outside the image folder, expected a path inside {folder}/",
        ),
        (row("/etc/hostname"), "picture '/etc/hostname' is outside the image folder, expected a path inside {folder}/"),
        (
            row("../images2/a.png"),
            "picture '../images2/a.png' is outside the image folder, expected a path inside {folder}/",
        ),
        (row(5), "image is 5, expected a path or a list of paths"),
        (row(["a.png", None]), "image is ['a.png', None], expected a path or a list of paths"),
    ],
    ids=["missing", "folder", "above", "absolute", "sibling", "number", "list"],
)
def test_bad_pictures_are_named(folder, bad, text):
    marks = len(bad["image"]) if isinstance(bad["image"], list) else 1
    bad = {**bad, "conversations": [human("<image>" * marks + "What?"), ANSWER]}
    assert problems_of(folder, bad) == [text.format(folder=folder)]


@pytest.mark.parametrize(
    ("image", "question", "found"),
    [
        ("a.png", "What?", "1 picture for no <image> marks"),
        (["a.png", "a.png"], "<image>\nWhat?", "2 pictures for 1 <image> mark"),
        ("a.png", "<image> or <image>?", "1 picture for 2 <image> marks"),
        (None, "<image>\nWhat?", "no pictures for 1 <image> mark"),
        ([], "<image>\nWhat?", "no pictures for 1 <image> mark"),
    ],
)
def test_a_wrong_number_of_marks_is_named(folder, image, question, found):
    expected = f"{found}, expected one mark in the human turns for each picture"
    assert problems_of(folder, row(image, human(question), ANSWER)) == [expected]


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        (None, "conversations is None, expected turns from human and gpt"),
        ([], "conversations is [], expected turns from human and gpt"),
        ("Hi", "conversations is 'Hi', expected turns from human and gpt"),
        ([ANSWER], "turn 0 is from 'gpt', expected 'human': human and gpt alternate"),
        ([QUESTION, QUESTION], "turn 1 is from 'human', expected 'gpt': human and gpt alternate"),
        ([{"from": "user", "value": "Hi"}, ANSWER], "turn 0 is from 'user', expected 'human': human and gpt alternate"),
        ([{"value": "Hi"}, ANSWER], "turn 0 is from None, expected 'human': human and gpt alternate"),
        ([QUESTION], "the last turn is from 'human', expected an answer from 'gpt'"),
        ([QUESTION, {"from": "gpt", "value": " \n"}], "turn 1 is an empty answer, expected text"),
        ([QUESTION, {"from": "gpt"}], "turn 1 is {'from': 'gpt'}, expected an object with from and value"),
        ([QUESTION, "A cat."], "turn 1 is 'A cat.', expected an object with from and value"),
        (
            [human("What?"), {"from": "gpt", "value": "<image>"}],
            "turn 1 is an answer with an <image> mark, expected marks in human turns only",
        ),
    ],
)
def test_bad_turns_are_named(folder, turns, text):
    assert problems_of(folder, {"id": "bad", "image": "a.png", "conversations": turns}) == [text]


def test_all_that_is_wrong_with_a_record_is_named(folder):
    bad = row("gone.png", QUESTION, {"from": "gpt", "value": ""}, id="bad")
    _, problems = read_records(write(folder, [TEXT_ONLY, bad]), folder, "skip")
    assert [str(problem) for problem in problems] == [
        f"record 1 (id 'bad'): picture {folder}/gone.png is missing, expected a file",
        "record 1 (id 'bad'): turn 1 is an empty answer, expected text",
    ]


def test_a_record_that_is_no_object_is_named(folder):
    assert problems_of(folder, "cat") == ["it is 'cat', expected an object with id, image and conversations"]


def test_refuse_names_the_first_20_and_their_number(folder):
    path = write(folder, [TEXT_ONLY, *[row(f"{idx}.png", id=idx) for idx in range(25)]])
    with pytest.raises(BadDataError) as raised:
        read_records(path, folder, "refuse")
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{path}: bad data"
    assert lines[1] == f"record 1 (id '0'): picture {folder}/0.png is missing, expected a file"
    assert lines[20] == f"record 20 (id '19'): picture {folder}/19.png is missing, expected a file"
    assert lines[21:] == ["25 problems in total, only the first 20 are listed"]


def test_skip_warns_of_the_first_20_and_their_number(folder, caplog):
    path = write(folder, [TEXT_ONLY, *[row(f"{idx}.png") for idx in range(25)]])
    with caplog.at_level(logging.WARNING):
        records, problems = read_records(path, folder, "skip")
    assert (len(records), len(problems)) == (1, 25)
    assert len(caplog.messages) == 21
    problem = f"record 1 (id 'one'): picture {folder}/0.png is missing, expected a file"
    assert caplog.messages[0] == f"{path}: left out: {problem}"
    assert caplog.messages[20].endswith("25 problems in total, only the first 20 are listed")


def test_good_data_warns_of_nothing(folder, caplog):
    read_records(write(folder, [row()]), folder, "skip")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('[{"id": 1,', "is not valid JSON, expected a list of conversations: Expecting property name"),
        ("", "is not valid JSON, expected a list of conversations: Expecting value"),
        ({"id": 1}, "holds a dict, expected a list of conversations"),
        ([], "has no record that can be used for training, expected at least one"),
        ([row("gone.png")], "has no record that can be used for training, expected at least one"),
    ],
    ids=["cut", "empty", "object", "no_records", "no_good_record"],
)
def test_a_file_without_records_is_named(folder, content, found):
    path = write(folder, content)
    with pytest.raises(BadDataError) as raised:
        read_records(path, folder, "skip")
    assert str(raised.value).startswith(f"{path} {found}")


def test_a_file_that_is_no_unicode_is_refused(folder):
    path = folder.parent / "data.json"
    path.write_bytes(b'["\xff"]')
    with pytest.raises(BadDataError, match=r"data\.json is not valid JSON"):
        read_records(path, folder, "skip")


def test_an_unknown_on_bad_data_is_refused(folder):
    with pytest.raises(ValueError, match="on_bad_data is 'ignore', expected one of refuse, skip"):
        read_records(write(folder, [row()]), folder, "ignore")
