from __future__ import annotations

import json
import math

import pytest

from benchmarks.accuracy.questions import Question, read_questions
from benchmarks.accuracy.scoring import accuracy, minus, one_answer_baseline, score, score_all

RIGHT = "small red letter K top left, large blue star top, large blue star bottom"


def question(question_type, answer, name="0"):
    return Question(name, question_type, "?", answer, None)


@pytest.mark.parametrize(
    ("said", "expected"), [("red", 1.0), (" Red\n", 1.0), ("red.", 0.0), ("dark red", 0.0), ("", 0.0)]
)
def test_an_answer_is_right_or_wrong(said, expected):
    assert score("color", said, "red") == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (RIGHT, 1.0),
        (" Large blue star  bottom,large blue star top, SMALL red letter k top left", 1.0),
        ("large blue star top", 1 / 3),
        (f"{RIGHT}, {RIGHT}", 1 / 2),
        ("large blue star top, large blue star top, large blue star top", 1 / 3),
        ("small red letter K, top left, large blue star top", 1 / 3),
        ("", 0.0),
    ],
    ids=["all", "in another order", "one", "twice", "repeated", "cut wrongly", "nothing"],
)
def test_a_description_is_worth_the_share_of_things_named_right(said, expected):
    assert score("description", said, RIGHT) == expected


def test_accuracy_by_type_and_over_types():
    questions = [
        question("color", "red"),
        question("color", "red"),
        question("color", "blue"),
        question("count", "two"),
    ]
    found = accuracy(questions, score_all(questions, ["red", "green", "blue", "two"]))
    assert found["by_type"] == {"color": pytest.approx(2 / 3), "count": 1.0}
    assert found["mean"] == pytest.approx(5 / 6)
    assert found["standard_error"] == pytest.approx(math.sqrt((1 / 3) / 3) / 2)  # two types, one with a single question


def test_methods_that_err_on_the_same_questions_differ_by_less_than_either_errs():
    questions, scores, others = [question("color", "red")] * 4, [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    found = accuracy(questions, minus(scores, others))
    assert found["mean"] == 0.25
    assert found["standard_error"] == pytest.approx(math.sqrt(0.25 / 4))
    assert found["standard_error"] < accuracy(questions, scores)["standard_error"]
    assert minus(scores, others, 0.5) == [0.5, 1.0, 0.0, 0.0]


def test_one_question_has_no_spread():
    assert accuracy([question("color", "red")], [1.0])["standard_error"] == 0


def test_the_baseline_is_the_answer_that_is_right_most_often():
    questions = [question("color", answer) for answer in ("red", "red", "blue")]
    questions += [question("description", answer) for answer in ("a, b", "b", "b, c", "b")]
    found = one_answer_baseline(questions)
    assert found["answers"] == {"color": "red", "description": "b"}
    assert found["by_type"] == {"color": pytest.approx(2 / 3), "description": 3 / 4}
    assert found["mean"] == pytest.approx((2 / 3 + 3 / 4) / 2)


def test_between_equal_answers_the_first_by_name_is_the_baseline():
    assert one_answer_baseline([question("color", "red"), question("color", "blue")])["answers"] == {"color": "blue"}


def test_questions_are_read_with_their_pictures(tmp_path):
    row = {"id": "7", "image": "images/7.jpg", "type": "color", "question": "What color?", "answer": "red"}
    (tmp_path / "questions.json").write_text(json.dumps([row]))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "7.jpg").write_bytes(b"abc")
    (found,) = read_questions(tmp_path / "questions.json")
    assert found == Question("7", "color", "What color?", "red", tmp_path / "images" / "7.jpg")
    assert found.picture_url() == "data:image/jpeg;base64,YWJj"
