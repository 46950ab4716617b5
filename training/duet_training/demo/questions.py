"""Questions about a scene, each with exactly one right answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from duet_training.demo.scene import COLORS, KINDS, PLACES, Scene, Thing

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
MAX_DESCRIBED = 4
_CLEARLY = 20  # pixels; one thing is at least this far left of or above the other


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str


def ask(scene: Scene, question_type: str, rng: np.random.Generator) -> Question | None:
    """A question of this type, one of ``QUESTION_TYPES``; None if the scene allows none."""
    asked = _MAKERS[question_type](scene, rng)
    return asked and Question(question_type, *asked)


def ask_several(scene: Scene, num: int, rng: np.random.Generator) -> list[Question]:
    """Up to ``num`` different questions, of as many types as possible."""
    questions: dict[str, Question] = {}
    for idx in range(2 * num):
        if idx % len(QUESTION_TYPES) == 0:
            order = rng.permutation(QUESTION_TYPES)
        question = ask(scene, str(order[idx % len(QUESTION_TYPES)]), rng)
        if question and len(questions) < num:
            questions.setdefault(question.text, question)
    return list(questions.values())


Asked = tuple[str, str] | None


def _color(scene: Scene, rng: np.random.Generator) -> Asked:
    wordings = "What color is the {}?", "Which color does the {} have?"
    return _of_one(scene, rng, wordings, lambda thing: thing.kind, lambda thing: thing.color)


def _count(scene: Scene, rng: np.random.Generator) -> Asked:
    how = rng.integers(3)
    if how == 0:
        what, number = "objects", len(scene)
    elif how == 1:
        kind = _present_or_any(rng, [thing.kind for thing in scene], KINDS)
        what, number = _plural(kind), sum(thing.kind == kind for thing in scene)
    else:
        color = _present_or_any(rng, [thing.color for thing in scene], COLORS)
        what, number = f"{color} objects", sum(thing.color == color for thing in scene)
    return _word(rng, "How many {} are there?", "How many {} do you see?").format(what), NUMBER_WORDS[number]


def _place(scene: Scene, rng: np.random.Generator) -> Asked:
    wordings = "Where is the {}?", "In which part is the {}?"
    return _of_one(scene, rng, wordings, lambda thing: thing.name, lambda thing: thing.place)


def _of_one(
    scene: Scene,
    rng: np.random.Generator,
    wordings: Sequence[str],
    called: Callable[[Thing], str],
    answer: Callable[[Thing], str],
) -> Asked:
    """A question about a thing whose name under ``called`` is unique in the scene."""
    thing = _pick(rng, _unique(scene, called))
    if thing is None:
        return None
    return _word(rng, *wordings).format(called(thing)), answer(thing)


def _relation(scene: Scene, rng: np.random.Generator) -> Asked:
    named = _unique(scene, lambda thing: thing.name)
    pairs = [(a, b) for a in named for b in named if b.x - a.x >= _CLEARLY or b.y - a.y >= _CLEARLY]
    if not pairs:
        return None
    first, second = pairs[rng.integers(len(pairs))]
    relations = [
        words
        for words, distance in (
            (("to the left of", "to the right of"), second.x - first.x),
            (("above", "below"), second.y - first.y),
        )
        if distance >= _CLEARLY
    ]
    forward, backward = relations[rng.integers(len(relations))]
    if rng.integers(2):
        first, second, forward, backward = second, first, backward, forward
    is_true = bool(rng.integers(2))
    return f"Is the {first.name} {forward if is_true else backward} the {second.name}?", _yes_no(is_true)


def _reading(scene: Scene, rng: np.random.Generator) -> Asked:
    glyphs = [thing for thing in scene if thing.glyph]
    thing = _pick(rng, _unique(glyphs, lambda thing: thing.name))
    if thing is None:
        return None
    if sum(other.kind == thing.kind for other in glyphs) == 1 and rng.integers(2):
        return f"Which {thing.kind} is shown?", thing.glyph
    return f"What does the {thing.name} say?", thing.glyph


def _existence(scene: Scene, rng: np.random.Generator) -> Asked:
    """Half of the things asked about are absent. Half of the absent ones differ from a present one in one attribute."""
    present = {thing.name for thing in scene}
    if rng.integers(2):
        name, is_there = str(rng.choice(sorted(present))), True
    else:
        like = scene[rng.integers(len(scene))]
        colors, kinds = (COLORS, KINDS) if rng.integers(2) else _neighbours(like, rng)
        absent = [f"{color} {kind}" for color in colors for kind in kinds if f"{color} {kind}" not in present]
        if not absent:
            return None
        name, is_there = str(rng.choice(absent)), False
    article = "an" if name.startswith("orange") else "a"
    return _word(rng, "Is there {} {}?", "Do you see {} {}?").format(article, name), _yes_no(is_there)


def _description(scene: Scene, rng: np.random.Generator) -> Asked:
    """All things, ordered by place in reading order, and within a place from top to bottom."""
    if len(scene) > MAX_DESCRIBED:
        return None
    ordered = sorted(scene, key=lambda thing: (PLACES.index(thing.place), thing.y, thing.x))
    return _word(rng, "Describe the picture.", "What is in the picture?"), ", ".join(map(describe, ordered))


def describe(thing: Thing) -> str:
    """For example, ``small red letter K top left``."""
    said = f" {thing.glyph}" if thing.glyph else ""
    return f"{thing.size} {thing.name}{said} {thing.place}"


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Asked]] = {
    "color": _color,
    "count": _count,
    "place": _place,
    "relation": _relation,
    "reading": _reading,
    "existence": _existence,
    "description": _description,
}
QUESTION_TYPES = tuple(_MAKERS)


def _unique(things: Sequence[Thing], key: Callable[[Thing], str]) -> list[Thing]:
    """The things whose ``key`` no other thing has."""
    times = Counter(map(key, things))
    return [thing for thing in things if times[key(thing)] == 1]


def _neighbours(thing: Thing, rng: np.random.Generator) -> tuple[Sequence[str], Sequence[str]]:
    return (COLORS, (thing.kind,)) if rng.integers(2) else ((thing.color,), KINDS)


def _present_or_any(rng: np.random.Generator, present: Sequence[str], every: Sequence[str]) -> str:
    return str(rng.choice(present if rng.random() < 0.8 else every))


def _pick(rng: np.random.Generator, things: Sequence[Thing]) -> Thing | None:
    return things[int(rng.integers(len(things)))] if things else None


def _plural(kind: str) -> str:
    return "crosses" if kind == "cross" else f"{kind}s"


def _word(rng: np.random.Generator, *wordings: str) -> str:
    return wordings[rng.integers(len(wordings))]


def _yes_no(is_true: bool) -> str:
    return "yes" if is_true else "no"
