from __future__ import annotations

import json
from collections import Counter

from PIL import Image

from duet_training.demo.data import HELD_OUT_SET, TRAINING_SET, picture, write_held_out_set, write_training_set
from duet_training.demo.questions import QUESTION_TYPES
from duet_training.records import read_records


def test_the_training_set_is_in_the_public_layout(tmp_path):
    path = write_training_set(tmp_path, num_pictures=5, questions_per_picture=4, seed=1)
    records, problems = read_records(path, tmp_path, "refuse")

    assert (len(records), problems) == (5, [])
    assert all(len(record.turns) in range(2, 9) for record in records)
    (first,) = {record.image_paths for record in records[:1]}
    with Image.open(first[0]) as drawn:
        assert drawn.size == (168, 168)


def test_the_held_out_set_asks_once_a_picture(tmp_path):
    rows = json.loads(write_held_out_set(tmp_path, num_per_type=3, seed=1).read_text())

    assert Counter(row["type"] for row in rows) == dict.fromkeys(QUESTION_TYPES, 3)
    assert len({row["image"] for row in rows}) == len(rows)
    assert all((tmp_path / row["image"]).exists() and row["question"] and row["answer"] for row in rows)


def test_no_set_shares_a_scene_with_another():
    scenes = [{picture(0, data_set, idx)[0] for idx in range(50)} for data_set in (TRAINING_SET, HELD_OUT_SET)]
    assert not scenes[0] & scenes[1]
