"""One picture under many settings: caches of one setting never affect the answer of another."""

from __future__ import annotations

import base64
import io
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from tests.golden_cases import golden_cases
from tests.serving.running_server import token_ids
from tests.serving.shared.test_chat_completions import metric

PICTURE = golden_cases("llava_mha")[1].picture_path
SETTINGS: list[Any] = [
    "off",
    "light",
    "aggressive",
    "visionzip",
    {"keep": [0.5, 0.25], "guide": "last"},  # stage 2 alone, like PyramidDrop and FastV
    {"dominant": 50, "contextual": 9, "keep": [0.4, 0.1], "guide": "all"},
]
CACHES = ("vllm:mm_cache", "vllm:prefix_cache")


def content(mark: str) -> list[dict[str, Any]]:
    """A question about the picture in a new file: the same pixels, but a different picture for every cache."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("mark", mark)
    Image.open(PICTURE).save(file, format="PNG", pnginfo=info)
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What color is the circle?"}]


def hits(server) -> dict[str, float]:
    return {cache: metric(server, f"{cache}_hits_total") for cache in CACHES}


def test_warm_caches_give_the_answers_of_cold_ones(server):
    def ask(idx: int, mark: str) -> tuple[list[int], Any, Any]:
        answer = server.ask(content(mark), compression=SETTINGS[idx], logprobs=True)
        logprobs = [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]
        return token_ids(answer), answer["usage"], pytest.approx(logprobs, abs=1e-4)

    server.ask("Is it warm?")  # makes the engine report its earlier work
    before = hits(server)
    cold = [ask(idx, mark=f"cold {idx}") for idx in range(len(SETTINGS))]
    assert hits(server)["vllm:mm_cache"] == before["vllm:mm_cache"]
    for one, other in combinations(cold, 2):
        assert one[2] != other[2].expected, "no two settings see the same"

    order = list(range(len(SETTINGS))) * 5
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(6) as pool:
        alone = ((idx, ask(idx, mark="warm")) for idx in order[:12])
        together = zip(order, pool.map(lambda idx: ask(idx, mark="warm"), order), strict=True)
        for idx, (tokens, usage, logprobs) in chain(alone, together):
            assert tokens == cold[idx][0], SETTINGS[idx]
            assert usage == cold[idx][1], SETTINGS[idx]
            assert logprobs.expected == cold[idx][2], SETTINGS[idx]
    after = hits(server)
    assert all(after[cache] > before[cache] for cache in CACHES), "the caches were warm"
