"""DUET's options of a server: the flags of ``duet-server serve``, or where those are absent, the environment."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from duet_server.plan import DEFAULT_MAX_REDUCTION

CompressionField = str | Mapping[str, object]  # a preset's name or an object, as it comes out of JSON
PREFIX = "duet_"


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


def option(default: str, parse: Callable[[str], Any], metavar: str, about: str) -> Any:
    """A field of ServerOptions: its default and its parser, as on the command line."""
    return field(metadata={"default": default, "type": parse, "metavar": metavar, "help": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Every field, such as ``max_reduction``, is a flag (``--duet-max-reduction``), a variable (``DUET_MAX_REDUCTION``)
    and a key of ``--config`` files (``duet-max-reduction``)."""

    default: CompressionField = option(
        "off", parse_default, "PRESET or JSON", "Compression of chat requests that say nothing of it."
    )
    max_reduction: float = option(
        str(DEFAULT_MAX_REDUCTION),
        parse_max_reduction,
        "R",
        "Largest share of visual tokens that a request may have removed, averaged over decoder layers.",
    )

    @classmethod
    def from_args(cls, args: Namespace) -> ServerOptions:
        """Read the parsed flags; a server started by vLLM's own command has none, only the environment."""
        values = {}
        for own in fields(cls):
            value = getattr(args, PREFIX + own.name, None)
            values[own.name] = own.metadata["type"](_from_environment(own, os.environ)) if value is None else value
        return cls(**values)


def add_flags(parser: Any, environment: Mapping[str, str]) -> None:
    """Add a flag for every option to an argparse parser or group, its default from the environment."""
    for own in fields(ServerOptions):
        flag = f"--{PREFIX}{own.name}".replace("_", "-")
        parser.add_argument(flag, **{**own.metadata, "default": _from_environment(own, environment)})


def _from_environment(own: Any, environment: Mapping[str, str]) -> str:
    return environment.get((PREFIX + own.name).upper(), own.metadata["default"])
