"""The authors' tokens from a running server: pictures as data URLs, alone and together with other requests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.golden_cases import MODEL_NAMES, GoldenCase, checkpoint_path, golden_cases
from tests.oracle.modeling import DuetLlava
from tests.serving.running_server import (
    RunningServer,
    chat,
    check_all_at_once,
    duet_server,
    picture_and_text,
    token_ids,
)


@pytest.fixture(scope="module", params=MODEL_NAMES)
def model(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with duet_server(tmp_path_factory.mktemp("server") / "log", checkpoint_path(model)) as server:
        yield server


def ask(server: RunningServer, case: GoldenCase) -> dict[str, Any]:
    return server.ask(picture_and_text(case.picture_path, case.question), compression=case.compression)


def test_each_case_alone(server, model):
    for case in golden_cases(model):
        answer = ask(server, case)
        assert token_ids(answer) == case.tokens, case
        assert answer["usage"]["prompt_tokens"] == case.prefill_len
        usage = answer["usage"]["compression"]
        num_text = case.prefill_len - case.num_entering
        per_layer = [case.kv_lens_per_layer[idx] - num_text for idx in (0, *case.boundaries)]
        assert usage["visual_tokens"]["segments"] == per_layer, case
        assert usage["kv_cache"]["token_layers"] == sum(case.kv_lens_per_layer), case


def check_preview(server: RunningServer, case: GoldenCase) -> None:
    """Compare a preview with the authors' selection: CLS, dominant patches in ascending order, merged patches."""
    body = chat(picture_and_text(case.picture_path, case.question), compression=case.compression)
    (picture,) = server.client.post("/v1/compression/preview", json=body).json()["patches"]
    tokens = ["cls", *sorted(case.dominant_patch_indices), *(("merged", idx) for idx in range(case.contextual))]
    rows = list(range(case.prefill_len))
    for segment, kept in zip(picture["segments"], [rows, *case.kept_rows_per_stage], strict=True):
        rows = [rows[row] for row in kept]
        visual = [row - case.image_start for row in rows if 0 <= row - case.image_start < case.num_entering]
        shown = ["cls"] * segment["cls"] + segment["patches"] + [("merged", idx) for idx in segment["contextual"]]
        assert shown == [tokens[place] for place in visual], case


def test_previews_show_the_authors_selection(server, model):
    for case in golden_cases(model):
        check_preview(server, case)


def test_all_cases_at_once_with_others_among_them(server, model):
    cases = golden_cases(model)
    plain = picture_and_text(cases[0].picture_path, cases[0].question)
    check_all_at_once(server, ask, cases, cases[0], plain)


def test_pictures_over_several_turns(server, model):
    """Two turns with one picture each, which are ranked separately, against the Hugging Face implementation."""
    first, second = golden_cases(model)[:2]
    messages = [
        {"role": "user", "content": picture_and_text(first.picture_path, first.question)},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": picture_and_text(second.picture_path, "And here? " + second.question)},
    ]
    settings = {"dominant": 30, "contextual": 6, "cluster_width": 4, "keep": [0.5, 0.25]}
    body = chat("", messages=messages, compression={**settings, "text": "all"})
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["compression"]["visual_tokens"]["segments"] == [72, 36, 18]
    expected = DuetLlava.from_pretrained(checkpoint_path(model)).generate(
        answer["prompt_token_ids"],
        [torch.tensor(case.pixel_values) for case in (first, second)],
        max_new_tokens=12,
        boundaries=first.boundaries,
        guiding_rows="all",
        **settings,
    )
    assert token_ids(answer) == expected.tokens
