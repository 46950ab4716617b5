"""Turns plain OpenAI messages into the prompts and pictures of LLaVA-1.5's own evaluation.

Source: https://github.com/haotian-liu/LLaVA, the conversation ``vicuna_v1`` and ``expand2square``.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from benchmarks.pictures import data_url, encoded

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
MEAN_COLOR = (122, 116, 104)  # the mean of CLIP's training pictures

Messages = list[dict[str, Any]]


def as_llava_asks(messages: Messages) -> Messages:
    """The messages with LLaVA's system prompt first, and every picture (a data URL) padded to a square."""
    padded = [{**message, "content": [_padded(part) for part in message["content"]]} for message in messages]
    return [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}, *padded]


def padded_to_square(image: Image.Image) -> Image.Image:
    """The picture in the middle of a square, so that a processor's square crop loses nothing."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), MEAN_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _padded(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image_url":
        return part
    content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    square = padded_to_square(Image.open(io.BytesIO(content)).convert("RGB"))
    return {"type": "image_url", "image_url": {"url": data_url(encoded(square, "PNG", compress_level=1))}}
