"""Parsers for the values of ``--duet-*`` options."""

from __future__ import annotations

from argparse import ArgumentTypeError
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network
_SWITCH = {"on": True, "off": False}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_switch(text: str) -> bool:
    """``on`` or ``off``."""
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ArgumentTypeError(f"{text!r} is neither on nor off") from None


def parse_cap(text: str) -> int | None:
    """A whole number. ``off`` and 0 give None: no cap."""
    word = text.strip().lower()
    if word == "off":
        return None
    if not (word.isascii() and word.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is neither a whole number nor off")
    return int(word) or None


def parse_bytes(text: str) -> int | None:
    """A number of bytes, optionally with the suffix K, M or G (powers of 1024). ``off`` and 0 give None: no cap."""
    word = text.strip().lower()
    number = word.rstrip("kmg")
    unit = _UNITS.get(word[len(number) :])
    if word != "off" and (unit is None or not (number.isascii() and number.isdecimal())):
        raise ArgumentTypeError(f"{text!r} is neither a size such as 32M nor off")
    return None if word == "off" else int(number) * (unit or 1) or None


def parse_seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def parse_networks(text: str) -> tuple[Network, ...]:
    """Comma-separated networks in CIDR notation; an empty text gives no network."""
    try:
        return tuple(ip_network(piece.strip()) for piece in text.split(",") if piece.strip())
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a list of networks such as 10.0.0.0/8,fd00::/8 ({error})") from None


def parse_formats(text: str) -> tuple[str, ...] | None:
    """Comma-separated names of Pillow formats that vLLM reads. ``off`` gives None: all of them."""
    from vllm.multimodal.image import ALLOWED_IMAGE_FORMATS  # a server has imported it before, all else need not

    names = tuple(piece.strip().upper() for piece in text.split(",") if piece.strip())
    if names == ("OFF",):
        return None
    if not names or not set(names).issubset(ALLOWED_IMAGE_FORMATS):
        raise ArgumentTypeError(f"{text!r} is neither off nor a list of {', '.join(ALLOWED_IMAGE_FORMATS)}")
    return names
