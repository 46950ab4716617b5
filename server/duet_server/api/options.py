"""DUET's server options: flags of ``duet-server serve``, whose defaults come from environment variables."""

from __future__ import annotations

import json
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from duet_server.api.option_types import (
    Network,
    parse_bytes,
    parse_cap,
    parse_formats,
    parse_networks,
    parse_seconds,
    parse_switch,
)
from duet_server.plan import DEFAULT_MAX_REDUCTION, CompressionField

PREFIX = "duet_"


def parse_default(text: str) -> CompressionField:
    """A preset's name, or a ``compression`` object in JSON."""
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


def parse_log_format(text: str) -> str:
    if text not in ("text", "json"):
        raise ArgumentTypeError(f"{text!r} is neither text nor json")
    return text


def parse_boundaries(text: str) -> list[int]:
    """Comma-separated indices of decoder layers; an empty text gives an empty list."""
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if not all(piece.isdecimal() for piece in pieces):
        raise ArgumentTypeError(f"{text!r} is not a list of decoder layer indices such as 16,24")
    return [int(piece) for piece in pieces]


def option(default: str, parse: Callable[[str], Any], metavar: str, about: str) -> Any:
    """Declare a field of ServerOptions. ``default`` is text, as on the command line."""
    return field(metadata={"default": default, "type": parse, "metavar": metavar, "help": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Each field, such as ``max_reduction``, can be set by a flag (``--duet-max-reduction``), an environment variable
    (``DUET_MAX_REDUCTION``) or a key in a ``--config`` file (``duet-max-reduction``)."""

    default: CompressionField = option(
        "off", parse_default, "PRESET or JSON", "Compression of chat requests that have no compression field."
    )
    max_reduction: float = option(
        str(DEFAULT_MAX_REDUCTION),
        parse_max_reduction,
        "R",
        "Largest share of visual tokens that a request may remove, averaged over decoder layers.",
    )
    media_public_only: bool = option(
        "on", parse_switch, "on|off", "Fetch media only from public addresses, and never through a proxy."
    )
    media_allow_networks: tuple[Network, ...] = option(
        "", parse_networks, "NETWORKS", "More networks to fetch media from, such as 10.1.0.0/16,fd00::/8."
    )
    media_max_download: int | None = option("32M", parse_bytes, "SIZE|off", "Maximum download size of one picture.")
    media_max_data_url: int | None = option("32M", parse_bytes, "SIZE|off", "Maximum length of one picture's data URL.")
    media_max_pixels: int | None = option("30000000", parse_cap, "N|off", "Maximum number of pixels of one picture.")
    media_max_aspect_ratio: int | None = option(
        "200", parse_cap, "N|off", "Maximum ratio of a picture's longer side to its shorter side."
    )
    media_formats: tuple[str, ...] | None = option(
        "PNG,JPEG,WEBP,GIF,BMP,TIFF,AVIF", parse_formats, "NAMES|off", "Accepted picture formats."
    )
    max_images: int | None = option(
        "16",
        parse_cap,
        "N|off",
        "Maximum number of pictures in one prompt; vLLM's --limit-mm-per-prompt takes precedence.",
    )
    max_n: int | None = option(
        "32", parse_cap, "N|off", "Maximum number of answers that one request may ask for (n, best_of)."
    )
    trust_uuids: bool = option(
        "off",
        parse_switch,
        "on|off",
        "Accept keys of vLLM's caches from clients (a picture's uuid). All clients share these caches.",
    )
    max_body: int | None = option("64M", parse_bytes, "SIZE|off", "Maximum size of one request's body.")
    guard_all_routes: bool = option(
        "on", parse_switch, "on|off", "With --api-key, require the key on every route except health and the playground."
    )
    plain_errors: bool = option(
        "on", parse_switch, "on|off", "Remove file paths and internal exceptions from error responses."
    )
    playground: bool = option("on", parse_switch, "on|off", "Serve the playground, a web page at /.")

    stall_timeout: float = option(
        "20",
        parse_seconds,
        "SECONDS",
        "/health/ready answers 503 if a step of the engine takes longer than this.",
    )
    log_format: str = option("text", parse_log_format, "text|json", "Log format of all processes.")

    @classmethod
    def from_args(cls, args: Namespace) -> ServerOptions:
        """Read the parsed flags. A server that vLLM's own command starts has no such flags, only the environment."""
        values = {}
        for spec in fields(cls):
            is_flag = hasattr(args, PREFIX + spec.name)  # None is a valid value: off
            values[spec.name] = getattr(args, PREFIX + spec.name) if is_flag else _parsed_environment(spec, os.environ)
        return cls(**values)


def variables() -> list[str]:
    """The names of all environment variables."""
    return [_variable(spec) for spec in fields(ServerOptions)]


def add_flags(parser: Any, environment: Mapping[str, str]) -> None:
    """Add one flag per option to an argparse parser or group. Defaults come from the environment.

    Raises:
        ArgumentTypeError: if an environment variable has a value that the flag would not accept.
    """
    for spec in fields(ServerOptions):
        flag = f"--{PREFIX}{spec.name}".replace("_", "-")
        parser.add_argument(flag, **{**spec.metadata, "default": _parsed_environment(spec, environment)})


def _parsed_environment(spec: Any, environment: Mapping[str, str]) -> Any:
    try:
        return spec.metadata["type"](environment.get(_variable(spec), spec.metadata["default"]))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{_variable(spec)} in the environment: {error}") from error


def _variable(spec: Any) -> str:
    return f"{PREFIX}{spec.name}".upper()
