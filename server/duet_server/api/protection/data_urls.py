"""Data URLs with base64, read as browsers read them: https://fetch.spec.whatwg.org/#data-urls."""

from __future__ import annotations

import re

import pybase64

from duet_server.plan.errors import Words

_WHITE_SPACE = b"\t\n\f\r "
_ESCAPES = {b"%" + code: bytes([int(code, 16)]) for code in (b"2B", b"2F", b"3D", b"09", b"0A", b"0C", b"0D", b"20")}
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/]")
_SHORT = 60  # characters


class DataUrlError(ValueError):
    """A data URL that cannot be read: what it has, and what would be read."""

    def __init__(self, value: str, expected: str) -> None:
        super().__init__(value, expected)
        self.value = value
        self.expected = expected


def split_data_url(url: str) -> tuple[str, str]:
    """The media type and the base64 of a data URL. Parameters of the type are dropped."""
    kind, comma, data = url[len("data:") :].partition(",")
    media_type, semicolon, encoding = kind.rpartition(";")
    if not comma or not semicolon or encoding.strip().lower() != "base64":
        raise DataUrlError(url[:_SHORT], "data:image/png;base64, followed by base64")
    if not data:
        raise DataUrlError(url[:_SHORT], "base64 after the comma")
    return media_type.partition(";")[0], data


def decode_base64(text: str) -> bytes:
    """The bytes of base64 that may lack its padding, and that may hold white space and percent-encoded characters."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return _decode_forgivingly(text.encode("ascii", "replace"))


def _decode_forgivingly(text: bytes) -> bytes:
    if b"%" in text:
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    text = text.translate(None, _WHITE_SPACE).rstrip(b"=")
    if foreign := _FOREIGN.search(text):
        raise DataUrlError(Words(f"base64 with {foreign[0].decode()}"), "only A-Z, a-z, 0-9, + and /, and = at the end")
    if len(text) % 4 == 1:
        raise DataUrlError(Words(f"base64 of {len(text)} characters"), "at least one more character: it was cut off")
    return pybase64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
