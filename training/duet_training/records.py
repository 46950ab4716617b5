"""Reads and checks training data in LLaVA's format: a JSON list of conversations, and a folder of pictures.

Source: https://github.com/haotian-liu/LLaVA, ``docs/Finetune_Custom_Data.md``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, NamedTuple

IMAGE_MARK = "<image>"
ON_BAD_DATA = ("refuse", "skip")
_CHAT_ROLES = {"human": "user", "gpt": "assistant"}
_MAX_LISTED = 20

logger = logging.getLogger(__name__)


class BadDataError(ValueError):
    """Data that cannot be used for training. The message says what is wrong and what is expected."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with one record of the JSON list."""

    index: int
    id: str
    text: str

    def __str__(self) -> str:
        return f"record {self.index} (id {self.id!r}): {self.text}"


class Turn(NamedTuple):
    """``role`` is ``user`` or ``assistant``; ``text`` still contains its ``IMAGE_MARK``s."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """A checked record. ``index`` is its position in the JSON list; ``turns`` alternate and end with an answer."""

    index: int
    id: str
    image_paths: tuple[str, ...]
    turns: tuple[Turn, ...]


def read_records(
    json_path: str | Path, image_folder: str | Path, on_bad_data: str
) -> tuple[list[Record], list[Problem]]:
    """The records that can be used for training, and the problems of the others.

    Picture files must exist but are not opened here: one that cannot be decoded is found when it is loaded.

    Args:
        json_path: a list of ``{"id", "image", "conversations"}``, where ``image`` is a path, a list of paths or absent.
        image_folder: the folder to which these paths are relative.
        on_bad_data: ``refuse`` raises if there is a problem; ``skip`` logs problems and leaves these records out.

    Raises:
        BadDataError: if a problem is refused, if the file is not a JSON list, or if there is no good record.
    """
    check_on_bad_data(on_bad_data)
    folder = os.path.join(os.path.abspath(image_folder), "")
    records: list[Record] = []
    problems: list[Problem] = []
    for index, row in enumerate(_read_list(json_path)):
        record_id = str(row.get("id", "")) if isinstance(row, dict) else ""
        texts = list(_problems(row, folder))
        problems += [Problem(index, record_id, text) for text in texts]
        if not texts:
            records.append(_record(index, record_id, row, folder))
    refuse_or_warn(problems, on_bad_data, str(json_path))
    if not records:
        raise BadDataError(f"{json_path} has no record that can be used for training, expected at least one")
    return records, problems


def check_on_bad_data(on_bad_data: str) -> None:
    """Raise ValueError unless the value is one of ``ON_BAD_DATA``."""
    if on_bad_data not in ON_BAD_DATA:
        raise ValueError(f"on_bad_data is {on_bad_data!r}, expected one of {', '.join(ON_BAD_DATA)}")


def refuse_or_warn(problems: Sequence[Problem], on_bad_data: str, source: str) -> None:
    """Report the first 20 problems and their number: ``refuse`` raises BadDataError, ``skip`` logs warnings."""
    listed = [str(problem) for problem in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        listed.append(f"{len(problems)} problems in total, only the first {_MAX_LISTED} are listed")
    if listed and on_bad_data == "refuse":
        raise BadDataError("\n".join([f"{source}: bad data", *listed]))
    for line in listed:
        logger.warning("%s: left out: %s", source, line)


def _read_list(json_path: str | Path) -> list[Any]:
    try:
        rows = json.loads(Path(json_path).read_bytes())
    except ValueError as error:
        raise BadDataError(f"{json_path} is not valid JSON, expected a list of conversations: {error}") from error
    if not isinstance(rows, list):
        raise BadDataError(f"{json_path} holds a {type(rows).__name__}, expected a list of conversations")
    return rows


def _record(index: int, record_id: str, row: dict[str, Any], folder: str) -> Record:
    turns = tuple([Turn(_CHAT_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]])
    return Record(index, record_id, tuple([_image_path(name, folder) for name in _image_names(row)]), turns)


def _image_names(row: dict[str, Any]) -> list[Any]:
    image = row.get("image")
    if image is None:
        return []
    return image if isinstance(image, list) else [image]


def _image_path(name: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, name))


def _problems(row: Any, folder: str) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"it is {short_repr(row)}, expected an object with id, image and conversations"
        return
    yield from _picture_problems(row, folder)
    turns = row.get("conversations")
    problems = list(_turn_problems(turns))
    if isinstance(turns, list) and not problems:
        problems = list(_mark_problems(len(_image_names(row)), turns))
    yield from problems


def _picture_problems(row: dict[str, Any], folder: str) -> Iterator[str]:
    for name in _image_names(row):
        if not isinstance(name, str):
            yield f"image is {short_repr(row['image'])}, expected a path or a list of paths"
        elif not (path := _image_path(name, folder)).startswith(folder):
            yield f"picture {name!r} is outside the image folder, expected a path inside {folder}"
        elif not os.path.isfile(path):
            yield f"picture {path} is missing, expected a file"


def _turn_problems(turns: Any) -> Iterator[str]:
    if not isinstance(turns, list) or not turns:
        yield f"conversations is {short_repr(turns)}, expected turns from human and gpt"
        return
    for position, (turn, role) in enumerate(zip(turns, cycle(_CHAT_ROLES), strict=False)):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            yield f"turn {position} is {short_repr(turn)}, expected an object with from and value"
            return
        if turn.get("from") != role:
            yield f"turn {position} is from {short_repr(turn.get('from'))}, expected {role!r}: human and gpt alternate"
            return
        if role == "gpt":
            yield from _answer_problems(position, turn["value"])
    if len(turns) % 2:
        yield "the last turn is from 'human', expected an answer from 'gpt'"


def _answer_problems(position: int, text: str) -> Iterator[str]:
    if not text.strip():
        yield f"turn {position} is an empty answer, expected text"
    if IMAGE_MARK in text:
        yield f"turn {position} is an answer with an {IMAGE_MARK} mark, expected marks in human turns only"


def _mark_problems(num_pictures: int, turns: list[dict[str, str]]) -> Iterator[str]:
    num_marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if num_marks != num_pictures:
        found = f"{_count(num_pictures, 'picture')} for {_count(num_marks, f'{IMAGE_MARK} mark')}"
        yield f"{found}, expected one mark in the human turns for each picture"


def _count(num: int, what: str) -> str:
    return f"{num or 'no'} {what}{'' if num == 1 else 's'}"
