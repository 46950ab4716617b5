"""Qwen2.5-VL on a running server: the authors' tokens, alone and mixed, and what plan, preview and usage say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.golden_qwen import CHECKPOINT, GoldenQwenCase
from tests.serving.running_server import (
    RunningServer,
    chat,
    check_all_at_once,
    duet_server,
    picture_and_text,
    token_ids,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with duet_server(tmp_path_factory.mktemp("server") / "log", CHECKPOINT) as server:
        yield server


def body(case: GoldenQwenCase, **fields: Any) -> dict[str, Any]:
    return chat(picture_and_text(case.picture_path, case.fields["question"]), compression=case.compression, **fields)


def ask(server: RunningServer, case: GoldenQwenCase) -> dict[str, Any]:
    return server.ask(picture_and_text(case.picture_path, case.fields["question"]), compression=case.compression)


def test_each_case_alone(server):
    for case in GoldenQwenCase.all():
        answer = ask(server, case)
        assert token_ids(answer) == case.tokens, case
        assert answer["usage"]["prompt_tokens"] == case.fields["prefill_len"]
        usage = answer["usage"]["compression"]
        assert usage["visual_tokens"]["encoder"] == case.fields["visual_tokens_before"]
        assert usage["visual_tokens"]["segments"] == case.visual_counts, case
        assert usage["kv_cache"]["token_layers"] == sum(case.fields["kv_lens_per_layer"]), case


def test_previews_show_the_authors_selection(server):
    for case in GoldenQwenCase.all():
        preview = server.client.post("/v1/compression/preview", json=body(case)).json()
        (picture,) = preview["patches"]
        _, rows, columns = case.fields["image_grid_thw"]
        assert picture["grid"] == [rows // 2, columns // 2]
        if not case.has_stage1:
            assert picture["stage1"] is None
            continue
        anchors = case.fields["anchor_indices"]
        assert picture["stage1"]["dominant"] == sorted(case.fields["dominant_indices"])
        assert [token["anchor"] for token in picture["stage1"]["contextual"]] == anchors
        shown = [
            sorted([*segment["patches"], *(anchors[idx] for idx in segment["contextual"])])
            for segment in picture["segments"]
        ]
        assert list(map(len, shown)) == case.visual_counts
        places, start, kept = case.fields["kept_indices"], case.fields["visual_start"], None
        for segment_idx, rows_kept in enumerate(case.kept_rows):
            visual = [row - start for row in rows_kept if 0 <= row - start < (len(kept) if kept else len(places))]
            kept = [(kept or places)[place] for place in visual]
            segment = 1 + segment_idx if len(case.kept_rows) == 2 or case.keep[0] < 1 else 2
            assert shown[segment] == kept, case


def test_all_cases_at_once_with_others_among_them(server):
    cases = GoldenQwenCase.all()
    plain = picture_and_text(cases[1].picture_path, cases[1].fields["question"])
    check_all_at_once(server, ask, cases, cases[1], plain)


@pytest.mark.parametrize("compression", ["light", "aggressive", {"reduction": 0.7}, {"visual_tokens": 20}], ids=str)
def test_the_plan_is_what_happens(server, compression):
    """Two pictures of different sizes: the plan before, the usage after, and the wish."""
    first, second = GoldenQwenCase.all()[1:3]
    parts = [
        *picture_and_text(first.picture_path, "And this?")[:1],
        *picture_and_text(second.picture_path, first.fields["question"]),
    ]
    request = chat(parts, compression=compression)
    plan = server.client.post("/v1/compression/plan", json=request).json()
    answer = server.client.post("/v1/chat/completions", json=request).json()
    assert plan["compression"] == answer["usage"]["compression"]
    assert plan["prompt_tokens"]["compressed"] == answer["usage"]["prompt_tokens"]
    assert plan["compression"]["visual_tokens"]["encoder"] == 120 + 117
    assert [item["encoder"] for item in plan["items"]] == [120, 117]
    units = [unit for item in plan["items"] for unit in item["units"]]
    assert [unit["grid"][0] * unit["grid"][1] for unit in units] == [120, 117]
    assert sum(item["stage1"] for item in plan["items"]) == plan["compression"]["visual_tokens"]["stage1"]
    assert plan["prefill_flops"]["compressed"] < plan["prefill_flops"]["uncompressed"]
    average = plan["compression"]["visual_tokens"]["layer_average"]
    if "visual_tokens" in compression:
        assert 2 * 20 - 2 < average <= 2 * 20
    if "reduction" in compression:
        assert 0.3 * 237 - 4 < average <= 0.3 * 237


def test_the_server_says_what_it_serves(server):
    about = server.client.get("/v1/compression").json()
    assert about["visual_tokens_per_image"] is None
    assert about["modalities"] == {"image": {"unit": "image", "quality": "published", "max_tokens": 1024}}
    assert about["presets"]["aggressive"]["dominant"] == 0.125
    assert about["presets"]["aggressive"]["reduction"] == 0.8893


@pytest.mark.parametrize("compression", ["off", "balanced"])
def test_a_video_is_refused(server, compression):
    frame = picture_and_text(GoldenQwenCase.all()[0].picture_path, "")[0]["image_url"]["url"].partition(",")[2]
    video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frame},{frame}"}}
    request = chat([video, {"type": "text", "text": "What is it?"}], compression=compression)
    answer = server.client.post("/v1/chat/completions", json=request)
    assert answer.status_code == 400
    assert "video" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("compression", "message"),
    [
        (
            {"dominant": 1.5, "contextual": 0},
            "compression.dominant is 1.5, expected a whole number from 1 on, or a share",
        ),
        ({"dominant": 2, "contextual": 0}, "expected a layer average of at least 3.6 visual tokens per image"),
        ({"visual_tokens": 3}, "expected a layer average of at least 3.6 visual tokens per image"),
        ({"reduction": 0.98}, "compression.reduction is 0.98, expected a number from 0 to 0.97."),
    ],
    ids=str,
)
def test_what_no_image_can_have_is_refused(server, compression, message):
    case = GoldenQwenCase.all()[1]
    request = body(case) | {"compression": compression}
    answer = server.client.post("/v1/chat/completions", json=request)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
