"""Two tensor-parallel ranks keep the same tokens and give the same answers."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from PIL import Image

from tests.checkpoints.qwen_vl import IMAGE_TOKEN_ID, write_qwen_vl
from tests.golden_cases import checkpoint_path, golden_cases
from tests.oracle.families import QwenOracle
from tests.serving.running_server import chat, duet_server, picture_and_text, token_ids
from tests.serving.test_golden_http import ask, check_preview

# By default, vLLM needs one memory node per rank.
BIND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
TWO_RANKS = ("--tensor-parallel-size", "2")


def test_golden_tokens_on_two_ranks(tmp_path):
    model = "llava_gqa"
    with duet_server(tmp_path / "log", checkpoint_path(model), *TWO_RANKS, **BIND) as server:
        for case in golden_cases(model):
            assert token_ids(ask(server, case)) == case.tokens, case
        check_preview(server, golden_cases(model)[0])
        plain = picture_and_text(golden_cases(model)[0].picture_path, "What is it?")
        assert token_ids(server.ask(plain * 2, compression={"keep": [0.5, 0.25]}))


def test_qwen3_vl_on_two_ranks_equals_transformers(tmp_path):
    """A tower whose heads are split between the ranks, and DeepStack."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_qwen_vl(checkpoint, "qwen3_vl")
    oracle = QwenOracle(checkpoint)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (140, 112, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    question = picture_and_text(tmp_path / "picture.png", "What color is the circle?")
    with duet_server(tmp_path / "log", checkpoint, *TWO_RANKS, **BIND) as server:
        for counts, keep in (((9, 3), [1.0, 1.0]), ((8, 4), [0.5, 0.25]), ((6, 2), [0.5, 0.0])):
            compression = {"dominant": counts[0], "contextual": counts[1], "keep": keep, "guide": "all"}
            body = chat(question, compression=compression)
            answer = server.client.post("/v1/chat/completions", json=body).json()
            prompt = [token for token, run in groupby(answer["prompt_token_ids"]) for _ in _once_if_image(token, run)]
            expected = oracle.generate(
                prompt, [picture], counts=lambda _n, c=counts: (*c, 4), boundaries=(4, 6), keep=keep, max_new_tokens=12
            )
            assert token_ids(answer) == expected.tokens, compression


def _once_if_image(token, run):
    return list(run)[:1] if token == IMAGE_TOKEN_ID else run
