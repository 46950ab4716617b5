"""Questions about one scene, with answers that are easy to check."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from duet_training.demo.questions import QUESTION_TYPES, ask, ask_several
from duet_training.demo.scene import Thing, make_scene

SCENE = (
    Thing("circle", "", "red", "small", 28, 28, 10),
    Thing("circle", "", "blue", "large", 140, 30, 18),
    Thing("letter", "K", "green", "large", 30, 140, 18),
    Thing("star", "", "red", "small", 84, 84, 10),
)


def answers(question_type: str, scene: tuple[Thing, ...] = SCENE) -> dict[str, str]:
    asked = [ask(scene, question_type, np.random.default_rng(seed)) for seed in range(300)]
    return {question.text: question.answer for question in asked if question}


@pytest.mark.parametrize(
    ("question_type", "expected"),
    [
        ("color", {"What color is the star?": "red", "What color is the letter?": "green"}),
        (
            "count",
            {
                "How many objects are there?": "four",
                "How many circles are there?": "two",
                "How many red objects do you see?": "two",
            },
        ),
        ("place", {"Where is the blue circle?": "top right", "In which part is the red star?": "center"}),
        (
            "relation",
            {
                "Is the red circle to the left of the blue circle?": "yes",
                "Is the red circle below the green letter?": "no",
                "Is the red star to the right of the green letter?": "yes",
            },
        ),
        ("reading", {"Which letter is shown?": "K", "What does the green letter say?": "K"}),
        ("existence", {"Is there a red star?": "yes", "Is there a blue star?": "no"}),
        (
            "description",
            {
                "Describe the picture.": "small red circle top left, large blue circle top right, "
                "small red star center, large green letter K bottom left"
            },
        ),
    ],
)
def test_each_question_has_the_right_answer(question_type: str, expected: dict[str, str]):
    asked = answers(question_type)
    assert expected.items() <= asked.items()


def test_what_is_not_unique_is_not_asked_about():
    assert not any("color is the circle" in text for text in answers("color"))


def test_types_that_a_scene_cannot_have():
    assert answers("reading", SCENE[:2]) == {}
    assert answers("relation", SCENE[:1]) == {}
    assert answers("description", SCENE + SCENE) == {}


@pytest.mark.parametrize("question_type", ["relation", "existence"])
def test_yes_and_no_are_balanced(question_type: str):
    scenes = [make_scene(np.random.default_rng([9, seed])) for seed in range(1500)]
    asked = [ask(scene, question_type, np.random.default_rng(idx)) for idx, scene in enumerate(scenes)]
    counts = Counter(question.answer for question in asked if question)
    assert 0.44 < counts["yes"] / counts.total() < 0.56


def test_several_questions_differ_and_are_of_many_types():
    questions = ask_several(SCENE, 8, np.random.default_rng(0))
    assert len({question.text for question in questions}) == len(questions) == 8
    assert {question.type for question in questions} == set(QUESTION_TYPES)
