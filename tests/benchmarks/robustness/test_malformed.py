from __future__ import annotations

import io
import json
import random

import pytest
from PIL import Image

from benchmarks.pictures import picture
from benchmarks.robustness.malformed import (
    Answer,
    Malformed,
    by_kind,
    different_faults,
    fault,
    malformed_fields,
    malformed_pictures,
)
from benchmarks.robustness.malformed_fields import BODIES, VALUES
from benchmarks.robustness.malformed_parts import KINDS
from benchmarks.robustness.malformed_pictures import MODES, bomb, no_size

ERROR = {"error": {"message": "no", "type": "BadRequestError", "param": "compression", "code": 400}}


@pytest.mark.parametrize("make", [malformed_pictures, malformed_fields])
def test_a_seed_gives_the_same_requests_of_every_kind(make):
    requests = make(40, seed=3)
    assert requests == make(40, seed=3)
    assert requests != make(40, seed=4)
    kinds = KINDS if make is malformed_pictures else [kind.__name__ for kind in (*VALUES, *BODIES)]
    assert {request.kind for request in requests} == set(kinds)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_have_the_mode_that_is_named(mode):
    assert Image.open(io.BytesIO(picture(mode=mode, file_format=MODES[mode]))).mode == mode


def test_a_bomb_is_small_until_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    content, _ = bomb(random.Random(0))
    width, height = Image.open(io.BytesIO(content)).size
    assert width * height >= 100_000_000
    assert len(content) < 1_000_000


def test_a_picture_of_no_size_is_none():
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(no_size(random.Random(0))[0])).load()


@pytest.mark.parametrize(
    ("status", "text", "is_fault"),
    [
        (200, "{}", False),
        (400, json.dumps(ERROR), False),
        (422, json.dumps(ERROR), False),
        (400, '{"detail": "no"}', True),
        (400, json.dumps({"error": {**ERROR["error"], "message": ""}}), True),
        (400, json.dumps({"error": {"message": "no"}}), True),
        (404, "null", True),
        (500, json.dumps(ERROR), True),
        (204, "", True),
    ],
)
def test_an_answer_is_at_fault_unless_it_is_200_or_a_proper_4xx(status, text, is_fault):
    assert (fault(status, text) is not None) == is_fault


def test_answers_are_counted_by_kind_and_faults_shown_once():
    bad, good = Malformed("bomb", "/", b"one"), Malformed("deep", "/", b"two")
    answers = [Answer(bad, 500, "500"), Answer(bad, 500, "500"), Answer(bad, 0, "reset"), Answer(good, 400, None)]
    counts = by_kind([*answers, Answer(good, 200, None)])
    assert counts == {"bomb": {"5xx": 2, "none": 1, "at fault": 3}, "deep": {"4xx": 1, "200": 1}}
    assert different_faults(answers) == ["2 times bomb: 500; such as b'one'", "1 times bomb: reset; such as b'one'"]
