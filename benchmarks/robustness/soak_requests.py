"""The requests of a soak, with known answers, and the ways in which a client may ask."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.pictures import data_url, encoded

PATH = "/v1/chat/completions"
NUM_PICTURES = 12
NUM_OUTPUT = (4, 8, 16, 32)
SETTINGS: tuple[Any, ...] = (
    "off",
    "light",
    "balanced",
    "aggressive",
    "visionzip",
    {"visual_tokens": 100},
    {"reduction": 0.5, "guide": "all"},
    {"dominant": 60, "contextual": 12, "cluster_width": 4, "keep": [0.5, 0.25], "text": "last"},
    {"keep": [0.5, 0.0]},
)
QUESTIONS = ("What color is the circle?", "Describe it.", "How many animals are there, and where do they stand?")
Behavior = Literal["whole", "stream", "gone before the answer", "gone amid the answer"]
BEHAVIORS: dict[Behavior, float] = {
    "whole": 0.4, "stream": 0.4, "gone before the answer": 0.1, "gone amid the answer": 0.1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """A request, and its answer when the server had nothing else to do."""

    body: bytes
    token_ids: tuple[int, ...] = ()
    margin: float = 0.0  # smallest distance between the best and the second-best token, in nats


def make_bodies(number: int, seed: int) -> list[dict[str, Any]]:
    """Every third request has no picture or two. Pictures are few, so that different settings share cached pictures."""
    rng = random.Random(seed)
    pictures = [_picture(f"{seed} {index}") for index in range(NUM_PICTURES)]
    bodies = []
    for index in range(number):
        num_pictures = (0, 1, 1, 2, 1, 1)[index % 6]
        parts: list[dict[str, Any]] = [_part(picture) for picture in rng.sample(pictures, num_pictures)]
        parts.append({"type": "text", "text": f"{rng.choice(QUESTIONS)} ({index})"})
        bodies.append(
            {
                "messages": [{"role": "user", "content": parts}],
                "compression": rng.choice(SETTINGS),
                "max_tokens": rng.choice(NUM_OUTPUT),
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
        )
    return bodies


def _part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _picture(seed: str) -> str:
    pixels = np.random.default_rng(list(seed.encode())).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return data_url(encoded(Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC), "JPEG"), "image/jpeg")


async def ask_alone(session: aiohttp.ClientSession, body: dict[str, Any]) -> SoakRequest:
    """Send the request, and return it with its answer. The server must not serve other requests meanwhile."""
    async with session.post(PATH, json={**body, "logprobs": True, "top_logprobs": 2}) as response:
        (choice,) = (await response.json())["choices"]
    margins = [
        top[0]["logprob"] - top[1]["logprob"] for top in (t["top_logprobs"] for t in choice["logprobs"]["content"])
    ]
    return SoakRequest(json.dumps(body).encode(), tuple(choice["token_ids"]), min(margins))


async def whole_answer(session: aiohttp.ClientSession, request: SoakRequest) -> tuple[int, ...]:
    async with session.post(PATH, data=request.body, headers={"Content-Type": "application/json"}) as response:
        (choice,) = (await response.json())["choices"]
        return tuple(choice["token_ids"])


async def streamed_answer(session: aiohttp.ClientSession, request: SoakRequest) -> AsyncIterator[list[int]]:
    """Token ids as they arrive, one list per event.

    Raises:
        ValueError: if the stream reports an error, or ends without its last event.
    """
    body = request.body[:-1] + b', "stream": true}'
    async with session.post(PATH, data=body, headers={"Content-Type": "application/json"}) as response:
        async for line in response.content:
            text = line.decode().strip().removeprefix("data: ")
            if text == "[DONE]":
                return
            if text:
                event = json.loads(text)
                if "choices" not in event:
                    raise ValueError(text)
                yield [token for choice in event["choices"] for token in choice.get("token_ids") or []]
    raise ValueError("the stream ended without [DONE]")
