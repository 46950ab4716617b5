"""Models that see a picture in tiles, on a running server: LLaVA-NeXT by the authors' numbers, and InternVL."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.internvl import write_internvl
from tests.golden_next import BOUNDARIES, CHECKPOINT, GoldenNextCase, whole_rows
from tests.serving.running_server import RunningServer, chat, duet_server, picture_and_text, token_ids


@pytest.fixture(scope="module")
def next_server(tmp_path_factory):
    flags = (
        "--duet-boundaries",
        ",".join(map(str, BOUNDARIES)),
        "--max-model-len",
        "4096",
        "--duet-max-reduction",
        "0.99",
    )
    with duet_server(tmp_path_factory.mktemp("server") / "log", CHECKPOINT, *flags) as server:
        yield server


def parts(case: GoldenNextCase) -> list:
    *first, last = case.picture_paths
    pictures = [part for path in first for part in picture_and_text(path, "")[:1]]
    return [*pictures, *picture_and_text(last, case.fields["question"])]


def ask(server: RunningServer, case: GoldenNextCase) -> dict:
    return server.ask(parts(case), compression=case.compression)


def test_llava_next_gives_the_authors_tokens_alone_and_together(next_server):
    cases = GoldenNextCase.all()
    for case in cases:
        answer = ask(next_server, case)
        assert token_ids(answer) == case.tokens, case
        usage = answer["usage"]["compression"]["visual_tokens"]
        assert answer["usage"]["prompt_tokens"] == case.fields["prefill_len"], case
        assert usage["stage1"] == case.fields["visual_tokens"], case
        assert (usage["encoder"] == usage["stage1"]) is (case.stage1 is None), case
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: token_ids(ask(next_server, case)), cases * 2))
    assert answers == [case.tokens for case in cases] * 2


def test_the_server_says_what_it_serves(next_server):
    about = next_server.client.get("/v1/compression").json()
    assert about["modalities"]["image"] == {"unit": "tile", "quality": "unproven", "max_tokens": 5 * 576 + 48}


def test_a_preview_shows_every_tile_by_the_authors_selection(next_server):
    for case in GoldenNextCase.all():
        answer = next_server.client.post(
            "/v1/compression/preview", json=chat(parts(case), compression=case.compression)
        )
        tiles = answer.json()["patches"]
        if case.stage1 is None:
            check_whole(case, tiles)
            continue
        assert [tile["tile"] for tile in tiles] == [t for n in case.fields["tiles_per_picture"] for t in range(n)]
        expected = [sorted(patches) for patches in case.fields["dominant_patch_indices"]]
        assert [tile["stage1"]["dominant"] for tile in tiles] == expected, case
        anchors = [[token["anchor"] for token in tile["stage1"]["contextual"]] for tile in tiles]
        assert anchors == case.fields["anchor_patch_indices"], case
        firsts = {0, *accumulate(case.fields["tiles_per_picture"])}
        assert [tile["area"] is not None for tile in tiles] == [idx in firsts for idx in range(len(tiles))]
        for segment_idx, num_held in enumerate(case.fields.get("visual_tokens_per_segment", [])):
            if len(case.fields["layers"]) == len(BOUNDARIES):
                held = [tile["segments"][segment_idx] for tile in tiles]
                assert sum(len(h["patches"]) + len(h["contextual"]) + h["cls"] for h in held) == num_held


def check_whole(case: GoldenNextCase, tiles: list) -> None:
    """A picture without stage 1: no padding, a newline behind each row of all tiles, and what stage 2 kept of it."""
    (path,) = case.picture_paths
    width, height = Image.open(path).size
    order, num_patches = whole_rows(height, width), tiles[0]["grid"][0] * tiles[0]["grid"][1]
    held, start = list(range(case.fields["prefill_len"])), case.fields["visual_start"]
    for segment_idx, kept in enumerate([held, *case.fields.get("kept_rows_per_stage", [])]):
        held = [held[row] for row in kept]
        numbers = sorted(order[row - start] for row in held if start <= row < start + len(order))
        assert len(numbers) == case.fields.get("visual_tokens_per_segment", [len(order)])[segment_idx]
        for tile_idx, tile in enumerate(tiles):
            expected = [n - tile_idx * num_patches for n in numbers if n >= 0 and n // num_patches == tile_idx]
            assert tile["segments"][segment_idx]["patches"] == expected, (case, tile_idx)
            assert tile["stage1"] is None


def test_internvl_plans_previews_and_answers(tmp_path):
    """Two pictures, of one tile and of two with a small view behind them."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_internvl(checkpoint, "qwen3", use_qk_norm=True)
    paths = []
    for idx, size in enumerate([(100, 100, 3), (100, 200, 3)]):
        paths.append(tmp_path / f"{idx}.png")
        Image.fromarray(np.random.default_rng(idx).integers(0, 256, size, dtype=np.uint8)).save(paths[-1])
    question = [*picture_and_text(paths[0], "")[:1], *picture_and_text(paths[1], "What is it?")]
    with duet_server(tmp_path / "log", checkpoint) as server:
        about = server.client.get("/v1/compression").json()
        assert about["modalities"]["image"] == {"unit": "tile", "quality": "unproven", "max_tokens": 5 * 16}
        request = chat(question, compression={"preset": "balanced", "guide": "all"})
        plan = server.client.post("/v1/compression/plan", json=request).json()
        answer = server.client.post("/v1/chat/completions", json=request).json()
        assert plan["compression"] == answer["usage"]["compression"]
        entering = round(170 / 576 * 16) + round(32 / 576 * 16)
        assert plan["compression"]["visual_tokens"]["encoder"] == 4 * 16
        assert [len(item["units"]) for item in plan["items"]] == [1, 3]
        assert plan["compression"]["visual_tokens"]["stage1"] == 4 * entering
        preview = server.client.post("/v1/compression/preview", json=request).json()
        assert [tile["grid"] for tile in preview["patches"]] == [[4, 4]] * 4
        assert [tile.get("tile") for tile in preview["patches"]] == [None, 0, 1, 2]
        assert [tile["area"] is not None for tile in preview["patches"]] == [True, False, False, True]
        kept = [len(tile["segments"][0]["patches"] + tile["segments"][0]["contextual"]) for tile in preview["patches"]]
        assert kept == [entering] * 4
        headers = {"Accept": "image/png"}
        picture = server.client.post("/v1/compression/preview", json=request, headers=headers)
        assert Image.open(io.BytesIO(picture.content)).format == "PNG"
        plain = server.ask(question)
        assert len(token_ids(plain)) == len(token_ids(server.ask(question, compression="off")))
