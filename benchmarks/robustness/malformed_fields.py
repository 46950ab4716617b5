"""Values of the ``compression`` field, and whole bodies, that no client should send."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Random = random.Random
KEYS = ("preset", "reduction", "visual_tokens", "dominant", "contextual", "keep", "cluster_width", "guide", "text")
PRESETS = ("off", "light", "balanced", "aggressive", "visionzip", "pyramiddrop", "fastv")
NUMBERS = (0, -1, 1, 2, 0.5, -0.0, 1.0000001, 1e-320, 1e308, 2**31, 2**63, -(2**64), 10**30, 10**400)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "Light",
    "light ",
    "strong",
    "ausgewogen",
    "é\u0301",
    "😀",
    "\0",
    "\ud800",
    "%s{0}",
    "../..",
    "x" * 5000,
)


def scalar(rng: Random) -> object:
    return rng.choice([*NUMBERS, *NOT_FINITE, *TEXTS, True, False])


def any_value(rng: Random, depth: int = 3) -> object:
    """Random JSON."""
    kind = rng.randrange(4 if depth else 2)
    if kind == 2:
        return [any_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 3:
        return {str(rng.choice([*KEYS, *TEXTS])): any_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    return scalar(rng)


def wrong_type(rng: Random) -> object:
    return any_value(rng)


def known_keys_wrong_values(rng: Random) -> object:
    return {key: any_value(rng, 1) for key in rng.sample(KEYS, rng.randint(1, 3))}


def several_budgets(rng: Random) -> object:
    good = {"preset": "light", "reduction": 0.5, "visual_tokens": 64, "dominant": 72, "keep": [0.5, 0.0]}
    return {key: good[key] for key in rng.sample(sorted(good), rng.randint(2, 5))}


def unknown_keys(rng: Random) -> object:
    return {"preset": rng.choice(PRESETS), str(rng.choice([*TEXTS, "keeps", "duet_keep", "__class__"])): scalar(rng)}


def odd_numbers(rng: Random) -> object:
    return {rng.choice(["reduction", "visual_tokens"]): rng.choice([*NUMBERS, *NOT_FINITE])}


def odd_counts(rng: Random) -> object:
    counts = [*NUMBERS, *NOT_FINITE, 72, 72.5, "72", 576, 577]
    return {
        "dominant": rng.choice(counts),
        "contextual": rng.choice(counts),
        "cluster_width": rng.choice([None, *counts]),
    }


def odd_keep(rng: Random) -> object:
    shares = [0, 0.25, 0.5, 1, 1.5, -0.1, "0.5", None, True, *NOT_FINITE, [0.5]]
    return {"keep": [rng.choice(shares) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 1000]))]}


def deep(rng: Random) -> object:
    value: object = "light"
    for _ in range(rng.choice([10, 100, 400])):
        value = [value] if rng.random() < 0.5 else {"preset": value}
    return value


VALUES: tuple[Callable[[Random], object], ...] = (
    wrong_type, known_keys_wrong_values, several_budgets, unknown_keys, odd_numbers, odd_counts, odd_keep, deep,
)  # fmt: skip


def reserved_keys(body: dict[str, Any], rng: Random) -> bytes:
    """The engine's own keys, in every field in which a client could send them."""
    key = rng.choice(["duet_keep", "duet_stage1", "duet_guide", "duet_salient", "duet_trace", "duet_"])
    field = rng.choice(["vllm_xargs", "mm_processor_kwargs"])
    return json.dumps({**body, field: {key: any_value(rng, 1)}}).encode()


def broken_json(body: dict[str, Any], rng: Random) -> bytes:
    text = json.dumps({**body, "compression": "light"})
    place = rng.randrange(1, len(text))
    return rng.choice([
        text[:place].encode(),
        (text[:place] + rng.choice('{}[]",:\0\\') + text[place:]).encode(),
        b"\xff\xfe" + text.encode("utf-16-le"),
        b"\xef\xbb\xbf" + text.encode(),
        text.encode().replace(b"light", b"\xff\xfe"),
        text.replace('"light"', "[" * 100_000).encode(),
        text.replace('"light"', "[" * 3000 + "]" * 3000).encode(),
        text.replace('"light"', "9" * 5000).encode(),
        text.replace('"light"', "-" + "9" * 4000).encode(),
        text.replace('"light"', "1e999").encode(),
        text.replace('"light"', '"off", "compression": "strong"').encode(),
        b"", b"null", b"[]", b'"light"', b"0",
    ])  # fmt: skip


BODIES: tuple[Callable[[dict[str, Any], Random], bytes], ...] = (reserved_keys, broken_json)
