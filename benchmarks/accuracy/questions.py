"""The held-out questions: a JSON list of rows, and a folder of pictures."""

from __future__ import annotations

import json
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pictures import data_url


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one picture, with its right answer."""

    id: str
    type: str
    text: str
    answer: str
    image: Path

    def picture_url(self) -> str:
        return data_url(self.image.read_bytes(), mimetypes.guess_type(self.image)[0] or "image/jpeg")


def read_questions(path: Path) -> list[Question]:
    """Read a JSON list of ``{id, image, type, question, answer}``; image paths are relative to the JSON file."""
    return [
        Question(row["id"], row["type"], row["question"], row["answer"], path.parent / row["image"])
        for row in json.loads(path.read_text())
    ]
