"""Small pictures as encoded files and as data URLs."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image


def picture(size: tuple[int, int] = (64, 48), mode: str = "RGB", file_format: str = "PNG", **options: Any) -> bytes:
    """An encoded gradient, or a single colour if this mode or size does not suit a gradient."""
    gradient = Image.linear_gradient("L").resize(size) if max(size) < 1000 else Image.new("L", size)
    return encoded(_in_mode(gradient, mode), file_format, **options)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _in_mode(grey: Image.Image, mode: str) -> Image.Image:
    if mode in ("LA", "RGBA"):
        grey = grey.convert(mode)
        grey.putalpha(128)
        return grey
    return Image.new(mode, grey.size) if mode in ("I;16", "CMYK") else grey.convert(mode)


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
