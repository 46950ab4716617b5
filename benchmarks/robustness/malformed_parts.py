"""Malformed image parts of a message, and correct image parts with malformed pictures."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from benchmarks.pictures import data_url, picture
from benchmarks.robustness.malformed_pictures import FILES

Random = random.Random


def bad_base64(rng: Random) -> str:
    good = base64.b64encode(picture()).decode()
    place = rng.randrange(len(good))
    return "data:image/png;base64," + rng.choice([
        good[:place] + rng.choice("!$é😀\0 \n=") + good[place:],
        good.rstrip("=") + "=" * rng.randint(0, 5),
        good[: 4 * (place // 4) + 1],
        base64.b64encode(good.encode()).decode(),
        good.translate(str.maketrans("+/", "-_")),
        picture().hex(),
        "",
    ])  # fmt: skip


def odd_url(rng: Random) -> object:
    return rng.choice([
        "", " ", "data:", "data:,", "data:image/png", "data:image/png,plain", "data:;base64,", "data:image/png;base64",
        "DATA:IMAGE/PNG;BASE64," + base64.b64encode(picture()).decode(), "data:image/png;base64;base64,AAAA",
        "file:///etc/passwd", "file://localhost/dev/zero", "ftp://127.0.0.1/picture.png", "javascript:alert(1)",
        "http://", "http://[", "http://127.0.0.1:9/picture.png", "http://127.0.0.1:99999/", "https://user@127.0.0.1:9/",
        "//127.0.0.1/picture.png", "picture.png", "\0", "😀", "x" * 100_000, 7, 1.5, True, None, [], {}, [[]],
        {"url": "data:image/png;base64,AAAA"},
    ])  # fmt: skip


def odd_part(rng: Random) -> dict[str, Any]:
    """An odd part around an ordinary picture."""
    url = data_url(picture())
    return rng.choice([
        {"type": "image_url"},
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": [url]},
        {"type": "image_url", "image_url": {"uri": url}},
        {"type": "image_url", "image_url": {"url": url, "detail": rng.choice(["extreme", 9, None])}},
        {"type": "image_url", "image_url": {"url": url}, "uuid": rng.choice(["", 5, "x" * 5000])},
        {"type": "image_url", "image_url": None, "uuid": "never seen"},
        {"type": "input_image", "image_url": url},
        {"type": "image", "image": url},
        {"type": "image_embeds", "image_embeds": rng.choice(["AAAA", {}, None])},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": rng.choice(["", "picture", None, 3]), "image_url": {"url": url}},
        {"image_url": {"url": url}},
        {},
    ])  # fmt: skip


def image_part(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


KINDS: dict[str, Callable[[Random], dict[str, Any]]] = {
    **{file.__name__: lambda rng, file=file: image_part(data_url(*file(rng))) for file in FILES},
    **{url.__name__: lambda rng, url=url: image_part(url(rng)) for url in (bad_base64, odd_url)},
    odd_part.__name__: odd_part,
}
