"""Measures the answers and the speed of one server under many settings, which take turns."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.accuracy.endpoint import Answer, Endpoint
from benchmarks.accuracy.methods import UNCOMPRESSED, Setting
from benchmarks.accuracy.questions import Question
from benchmarks.accuracy.scoring import accuracy, score_all


@dataclass(slots=True)
class Measured:
    """The answers under one setting so far, by question id, and the seconds of each block."""

    setting: Setting
    answers: dict[str, Answer] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def add(self, questions: Sequence[Question], answers: Sequence[Answer], seconds: float) -> None:
        self.answers |= {question.id: answer for question, answer in zip(questions, answers, strict=True)}
        self.seconds.append(seconds)


async def sweep(
    endpoint: Endpoint,
    questions: Sequence[Question],
    settings: Sequence[Setting],
    *,
    num_blocks: int,
    num_warmup: int,
    seed: int,
) -> list[Measured]:
    """Ask every question under every setting.

    The questions are shuffled into blocks. All settings answer a block before the next block begins, and every second
    block takes the settings in reverse order. A machine that slows down or speeds up therefore favours no setting.

    Args:
        endpoint: the server.
        questions: the questions.
        settings: the settings.
        num_blocks: number of blocks.
        num_warmup: number of questions asked under every setting before anything is measured.
        seed: the seed of the shuffling.
    """
    shuffled = random.Random(seed).sample(questions, len(questions))
    for setting in settings:
        await endpoint.ask(shuffled[:num_warmup], setting.compression)
    measured = [Measured(setting) for setting in settings]
    for number in range(num_blocks):
        block = shuffled[number::num_blocks]
        for entry in measured if number % 2 == 0 else reversed(measured):
            entry.add(block, *await endpoint.ask(block, entry.setting.compression))
        say(f"{endpoint.model}: block {number + 1} of {num_blocks} done under {len(settings)} settings")
    return measured


def points(questions: Sequence[Question], measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One point per setting: scores, accuracy, visual tokens as the server reports them, and requests/s.

    The gain over ``off`` is computed for every block; a point has its median, minimum and maximum.
    """
    (off,) = (entry for entry in measured if entry.setting == UNCOMPRESSED)
    return [_point(questions, entry, off) for entry in measured]


def _point(questions: Sequence[Question], entry: Measured, off: Measured) -> dict[str, Any]:
    setting, answers = entry.setting, [entry.answers[question.id] for question in questions]
    scores = score_all(questions, [answer.text for answer in answers])
    gains = [off_seconds / seconds for off_seconds, seconds in zip(off.seconds, entry.seconds, strict=True)]
    return {
        "method": setting.method,
        "share": setting.share,
        "compression": setting.compression,
        "layer_average": _mean([answer.layer_average for answer in answers]),
        "reduction": _mean([answer.reduction for answer in answers]),
        "answer_tokens": _mean([answer.num_tokens for answer in answers]),
        "requests_per_second": len(answers) / sum(entry.seconds),
        "gain": statistics.median(gains),
        "gain_range": (min(gains), max(gains)),
        "accuracy": accuracy(questions, scores),
        "scores": scores,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
