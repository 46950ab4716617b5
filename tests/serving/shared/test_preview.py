"""Previews with the real engine: 24 x 24 patches, boundaries 4 and 6 of 8 layers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.golden_cases import golden_cases
from tests.serving.running_server import RunningServer, chat, picture_and_text, token_ids
from tests.serving.shared.test_chat_completions import metric

CASES = golden_cases("llava_mha")
QUESTION = picture_and_text(CASES[0].picture_path, "What color is the circle?")
OTHER = picture_and_text(CASES[3].picture_path, "And here?")
PATH = "/v1/compression/preview"


def preview(server: RunningServer, content: Any, compression: Any) -> dict[str, Any]:
    response = server.client.post(PATH, json=chat(content, compression=compression))
    assert response.status_code == 200, response.text
    return response.json()


def check_picture(picture: dict[str, Any], num_dominant: int, num_contextual: int, counts: list[int]) -> None:
    stage1, segments = picture["stage1"], picture["segments"]
    by_score = sorted(range(576), key=lambda patch: (-stage1["scores"][patch], patch))
    assert stage1["dominant"] == sorted(by_score[: num_dominant - 1])
    members = [patch for token in stage1["contextual"] for patch in token["patches"]]
    assert len(stage1["contextual"]) == num_contextual
    assert len(set(members)) == len(members)
    assert not set(members) & set(stage1["dominant"])
    assert all(token["anchor"] in token["patches"] for token in stage1["contextual"])

    assert [segment["layers"] for segment in segments] == [[0, 4], [4, 6], [6, 8]]
    held = [_held(segment) for segment in segments]
    assert held[0] == ["cls", *stage1["dominant"], *(("merged", idx) for idx in range(num_contextual))]
    assert [len(tokens) for tokens in held] == counts
    for before, after, segment in zip(held, held[1:], segments[1:], strict=False):
        assert set(after) <= set(before)
        if segment["scores"] is not None:
            scores = dict(zip(before, segment["scores"], strict=True))
            dropped = [scores[token] for token in before if token not in after]
            assert max(dropped) <= min(scores[token] for token in after)
        else:
            assert after in ([], before)


def _held(segment: dict[str, Any]) -> list[Any]:
    merged = [("merged", idx) for idx in segment["contextual"]]
    return [*(["cls"] if segment["cls"] else []), *segment["patches"], *merged]


def test_a_preview_says_what_was_kept(server):
    """With cold caches and with warm ones, and without an effect on other requests."""
    question = chat(QUESTION, compression="aggressive")
    planned = server.client.post("/v1/compression/plan", json=question).json()
    expected = token_ids(server.ask(QUESTION, compression="aggressive"))
    counted = metric(server, "duet_requests_total")
    first, second = (preview(server, QUESTION, "aggressive") for _ in range(2))
    assert metric(server, "duet_requests_total") == counted
    assert first == second
    assert {key: value for key, value in first.items() if key != "patches"} == planned
    (picture,) = first["patches"]
    assert picture["grid"] == [24, 24]
    width, height = Image.open(CASES[0].picture_path).size
    assert picture["picture"] == {"width": width, "height": height}
    assert picture["area"] == {"left": 0, "top": 0, "width": width, "height": height}, "a square is covered whole"
    settings = first["compression"]["settings"]
    check_picture(picture, settings["dominant"], settings["contextual"], [102, 51, 0])
    assert token_ids(server.ask(QUESTION, compression="aggressive")) == expected


def test_off_keeps_everything(server):
    (picture,) = preview(server, QUESTION, "off")["patches"]
    assert picture["stage1"] is None
    for segment in picture["segments"]:
        assert (segment["patches"], segment["cls"], segment["scores"]) == (list(range(576)), False, None)


def test_stage_2_alone(server):
    (picture,) = preview(server, QUESTION, {"keep": [0.5, 0.25]})["patches"]
    assert picture["stage1"] is None
    assert [len(segment["patches"]) for segment in picture["segments"]] == [576, 288, 144]
    assert [segment["scores"] and len(segment["scores"]) for segment in picture["segments"]] == [None, 576, 288]


def test_several_pictures_one_of_them_twice(server):
    """Stage 1 processes each picture alone; stage 2 ranks each picture by the text after it."""
    settings = {"dominant": 30, "contextual": 6, "cluster_width": 4, "keep": [0.5, 0.25]}
    first, other, again = preview(server, [*QUESTION, *OTHER, *QUESTION], settings)["patches"]
    alone, alone_other = (preview(server, content, settings)["patches"][0] for content in (QUESTION, OTHER))
    assert first["stage1"] == again["stage1"]
    for together, single in ((first, alone), (other, alone_other)):
        assert together["stage1"]["dominant"] == single["stage1"]["dominant"]
        np.testing.assert_allclose(together["stage1"]["scores"], single["stage1"]["scores"], rtol=1e-3)
    for picture in (first, other, again):
        check_picture(picture, 30, 6, [36, 18, 9])


def test_text_alone_has_no_patches(server):
    assert preview(server, "What is the capital of France?", "aggressive")["patches"] == []


def test_an_overlay_shows_what_was_kept(server):
    body = chat([*QUESTION, *OTHER], compression="aggressive")
    response = server.client.post(PATH, json=body, headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    sheet = Image.open(io.BytesIO(response.content))
    assert sheet.size == (12 + 4 * (336 + 12), 2 * (336 + 40 + 12))
    seen, *views = (np.asarray(sheet)[40 : 40 + 336, 12 + 348 * idx :][:, :336].astype(int) for idx in range(4))
    original = np.asarray(Image.open(CASES[0].picture_path).convert("RGB").resize((336, 336))).astype(int)
    assert np.abs(seen - original).mean() < 8, "the first view is the picture"
    (picture, _) = server.client.post(PATH, json=body).json()["patches"]
    for view, segment in zip(views, picture["segments"], strict=True):
        patches = {patch for patch in range(576) if (_patch(view, patch) == _patch(seen, patch)).all()}
        assert patches >= set(segment["patches"]), "kept patches are as they are"
        dark = {patch for patch in range(576) if np.abs(_patch(view, patch) - _patch(seen, patch) * 0.18).max() <= 1}
        assert not dark & set(segment["patches"])
        assert len(dark) >= 576 - 102 - 200, "what was dropped is dark"


def _patch(view: np.ndarray, patch: int) -> np.ndarray:
    row, column = divmod(patch, 24)
    return view[14 * row :, 14 * column :][:14, :14]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"compression": "extreme"}, "compression"),
        ({"compression": {"dominant": 700, "contextual": 0}}, "compression.dominant"),
        ({"vllm_xargs": {"duet_trace": 1}}, "vllm_xargs.duet_trace"),
        ({"mm_processor_kwargs": {"duet_trace": 1}}, "mm_processor_kwargs.duet_trace"),
        ({"messages": [{"role": "user", "content": "hi"}], "accept": "image/png"}, "messages"),
    ],
    ids=str,
)
def test_bad_input_is_a_400_that_names_the_field(server, fields, param):
    headers = {"Accept": fields.pop("accept", "application/json")}
    response = server.client.post(PATH, json=chat(QUESTION, **fields), headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
