"""The one error class for mistakes in a user's settings."""

from __future__ import annotations

import json
from reprlib import Repr


class _ValueRepr(Repr):
    """Python's short form of a value, with the words that JSON has for what Python writes otherwise."""

    def repr_bool(self, value: bool, level: int) -> str:
        return json.dumps(value)

    repr_NoneType = repr_float = repr_bool  # noqa: N815 - the base class finds these by the type's name


# Keeps the message short: long text is cut in the middle, deep nesting at the third level.
_VALUE_REPR = _ValueRepr()
_VALUE_REPR.maxlevel = 3
_VALUE_REPR.maxstring = _VALUE_REPR.maxother = 80
_VALUE_REPR.maxdict = _VALUE_REPR.maxlist = _VALUE_REPR.maxtuple = 10


def shown(value: object) -> str:
    """A value as error messages show it."""
    return _VALUE_REPR.repr(value)


class Words(str):
    """A value that an error describes instead of quoting, as in "messages is missing"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


MISSING = Words("missing")


class SettingsError(ValueError):
    """A setting that cannot be served.

    The message is one sentence with the field, its value and what would be accepted. The error can be pickled, so that
    it can cross vLLM's process boundary.

    Args:
        field: the field's path as the user wrote it, such as ``compression.keep``.
        value: what the user gave, or ``Words`` about it.
        expected: what would work instead; the message puts it after the word "expected".
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field} is {shown(self.value)}, expected {self.expected}."
