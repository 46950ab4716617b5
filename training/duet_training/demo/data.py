"""The demo model's data: scenes drawn from a seed, as pictures and a JSON of conversations in LLaVA's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from duet_training.demo.drawing import draw_scene
from duet_training.demo.questions import QUESTION_TYPES, Question, ask, ask_several
from duet_training.demo.scene import Scene, make_scene

# Each set has its own seed, so that no two sets share a picture.
TOWER_SET, TRAINING_SET, HELD_OUT_SET = 1, 2, 3
_CHUNK = 256
_TRIES = 200


def picture(seed: int, data_set: int, idx: int) -> tuple[Scene, Image.Image, np.random.Generator]:
    """Scene and picture number ``idx`` of a set, and its random generator for further choices."""
    rng = np.random.default_rng([seed, data_set, idx])
    scene = make_scene(rng)
    return scene, draw_scene(scene, rng), rng


def write_training_set(folder: Path, num_pictures: int, questions_per_picture: int, seed: int) -> Path:
    """Write ``conversations.json`` and ``images/``, one conversation per picture. Returns the JSON's path.

    Source of the format: https://github.com/haotian-liu/LLaVA, ``docs/Finetune_Custom_Data.md``.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write = partial(_write_conversations, folder / "images", questions_per_picture, seed)
    return _write_json(folder / "conversations.json", _in_processes(write, num_pictures))


def write_held_out_set(folder: Path, num_per_type: int, seed: int) -> Path:
    """Write ``questions.json`` and ``images/``: ``num_per_type`` questions of every type, each with its own picture.

    A row has ``id``, ``image``, ``type``, ``question`` and ``answer``. Returns the JSON's path.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write = partial(_write_question, folder / "images", num_per_type, seed)
    return _write_json(folder / "questions.json", map(write, range(num_per_type * len(QUESTION_TYPES))))


def _write_json(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(list(rows), indent=0))
    return path


def _in_processes(write: partial, num: int) -> Iterable[dict[str, Any]]:
    chunks = [range(start, min(start + _CHUNK, num)) for start in range(0, num, _CHUNK)]
    with ProcessPoolExecutor() as pool:
        yield from chain.from_iterable(pool.map(write, chunks))


def _write_conversations(images: Path, questions_per_picture: int, seed: int, chunk: range) -> list[dict[str, Any]]:
    rows = []
    for idx in chunk:
        scene, drawn, rng = picture(seed, TRAINING_SET, idx)
        name = f"{idx:06d}.jpg"
        drawn.save(images / name, quality=92)
        turns = _conversation(ask_several(scene, questions_per_picture, rng))
        rows.append({"id": f"{idx:06d}", "image": f"images/{name}", "conversations": turns})
    return rows


def _conversation(questions: Sequence[Question]) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for question in questions:
        mark = "" if turns else "<image>\n"
        turns += [{"from": "human", "value": mark + question.text}, {"from": "gpt", "value": question.answer}]
    return turns


def _write_question(images: Path, num_per_type: int, seed: int, idx: int) -> dict[str, Any]:
    question_type = QUESTION_TYPES[idx // num_per_type]
    for attempt in range(_TRIES):
        scene, drawn, rng = picture(seed, HELD_OUT_SET, idx * _TRIES + attempt)
        question = ask(scene, question_type, rng)
        if question:
            break
    else:
        raise AssertionError(f"no scene for a question of type {question_type}")
    name = f"{idx:05d}.jpg"
    drawn.save(images / name, quality=92)
    row = {"id": f"{idx:05d}", "image": f"images/{name}", "type": question_type}
    return {**row, "question": question.text, "answer": question.answer}
