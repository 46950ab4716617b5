"""Parsers of option values that several of DUET's options share."""

from __future__ import annotations

from argparse import ArgumentTypeError
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network
_SWITCH = {"on": True, "off": False}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_switch(text: str) -> bool:
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ArgumentTypeError(f"{text!r} is neither on nor off") from None


def parse_cap(text: str) -> int | None:
    """A whole number; None, no cap, for ``off`` and 0."""
    word = text.strip().lower()
    if word == "off":
        return None
    if not (word.isascii() and word.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is neither a whole number nor off")
    return int(word) or None


def parse_bytes(text: str) -> int | None:
    """A cap in bytes, or with K, M or G behind the number in multiples of 1024."""
    word = text.strip().lower()
    number = word.rstrip("kmg")
    unit = _UNITS.get(word[len(number) :])
    if word != "off" and (unit is None or not (number.isascii() and number.isdecimal())):
        raise ArgumentTypeError(f"{text!r} is neither a size such as 32M nor off")
    return None if word == "off" else int(number) * (unit or 1) or None


def parse_seconds(text: str) -> float:
    """A time greater than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, comma-separated; an empty text gives none."""
    try:
        return tuple(ip_network(piece.strip()) for piece in text.split(",") if piece.strip())
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a list of networks such as 10.0.0.0/8,fd00::/8 ({error})") from None


def parse_formats(text: str) -> tuple[str, ...] | None:
    """Names of Pillow's formats, comma-separated; None, every format that vLLM reads, for ``off``."""
    names = tuple(piece.strip().upper() for piece in text.split(",") if piece.strip())
    return None if names == ("OFF",) else names
