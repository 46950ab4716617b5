"""DUET's options of a server: the flags of ``duet-server serve``, or where those are absent, the environment."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import dataclass

from duet_server.plan import DEFAULT_MAX_REDUCTION

CompressionField = str | Mapping[str, object]  # a preset's name or an object, as it comes out of JSON


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """``default`` is the compression of a request that says nothing, ``max_reduction`` the most that any may have."""

    default: CompressionField
    max_reduction: float

    @classmethod
    def from_args(cls, args: Namespace) -> ServerOptions:
        """Read the parsed flags; a server started by vLLM's own command has none, only the environment."""
        default = getattr(args, "duet_default", None) or parse_default(os.environ.get("DUET_DEFAULT", "off"))
        limit = getattr(args, "duet_max_reduction", None)
        if limit is None:
            limit = parse_max_reduction(os.environ.get("DUET_MAX_REDUCTION", str(DEFAULT_MAX_REDUCTION)))
        return cls(default, limit)


def parse_default(text: str) -> CompressionField:
    """A preset's name, or the JSON of a ``compression`` object."""
    if not text.lstrip().startswith(("{", "[", '"')):
        return text.strip()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"{text!r} is not JSON ({error}), expected a preset's name or a JSON object") from error
    if not isinstance(value, str | dict):
        raise ArgumentTypeError(f"{text!r} is a list, expected a preset's name or a JSON object")
    return value


def parse_max_reduction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def parse_boundaries(text: str) -> list[int]:
    """Decoder layer indices, comma-separated; an empty text gives none."""
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if not all(piece.isdecimal() for piece in pieces):
        raise ArgumentTypeError(f"{text!r} is not a list of decoder layer indices such as 16,24")
    return [int(piece) for piece in pieces]
