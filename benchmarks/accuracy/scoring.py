"""Computes accuracy from answers, and the accuracy of a baseline that always gives the same answer."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.accuracy.questions import Question

DESCRIPTION = "description"


def score(question_type: str, answer: str, right: str) -> float:
    """1 for the right answer, otherwise 0. For a description, the share of correctly named things, from 0 to 1."""
    if question_type == DESCRIPTION:
        return _share_in_common(_phrases(answer), _phrases(right))
    return float(answer.strip().lower() == right.strip().lower())


def accuracy(questions: Sequence[Question], scores: Sequence[float]) -> dict[str, Any]:
    """Mean over types, its standard error, and each type's mean. ``scores`` may be differences between two methods."""
    by_type = _by_type(questions, scores)
    variance = sum(statistics.variance(found) / len(found) for found in by_type.values() if len(found) > 1)
    means = {name: statistics.mean(found) for name, found in by_type.items()}
    return {
        "mean": statistics.mean(means.values()),
        "standard_error": math.sqrt(variance) / len(by_type),
        "by_type": means,
    }


def minus(scores: Sequence[float], others: Sequence[float], share: float = 1.0) -> list[float]:
    """``scores`` minus ``share`` times ``others``, question by question."""
    return [score - share * other for score, other in zip(scores, others, strict=True)]


def score_all(questions: Sequence[Question], answers: Iterable[str]) -> list[float]:
    return [score(q.type, answer, q.answer) for q, answer in zip(questions, answers, strict=True)]


def one_answer_baseline(questions: Sequence[Question]) -> dict[str, Any]:
    """Accuracy of the majority class: every question gets the answer that is right most often for its type.

    For descriptions, this is the right answer that has most in common with all others.
    """
    right = _by_type(questions, [question.answer for question in questions])
    best = {name: _best_answer(name, answers) for name, answers in right.items()}
    return {"answers": best, **accuracy(questions, score_all(questions, [best[q.type] for q in questions]))}


def _best_answer(question_type: str, right: Sequence[str]) -> str:
    """The best answer for all questions of a type; of equal ones, the first in alphabetical order."""
    return max(sorted(set(right)), key=lambda answer: sum(score(question_type, answer, other) for other in right))


def _by_type(questions: Sequence[Question], values: Sequence[Any]) -> dict[str, list[Any]]:
    """Values grouped by type, in the order in which types first occur."""
    groups: dict[str, list[Any]] = {}
    for question, value in zip(questions, values, strict=True):
        groups.setdefault(question.type, []).append(value)
    return groups


def _share_in_common(said: Counter[str], right: Counter[str]) -> float:
    return (said & right).total() / max(said.total(), right.total(), 1)


def _phrases(text: str) -> Counter[str]:
    phrases = (" ".join(phrase.lower().split()) for phrase in text.split(","))
    return Counter(phrase for phrase in phrases if phrase)
