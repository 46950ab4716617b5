"""The one error class for mistakes in a user's settings."""

from __future__ import annotations

from reprlib import Repr

# Keeps the message short: long text is cut in the middle, deep nesting at the third level.
_VALUE_REPR = Repr()
_VALUE_REPR.maxlevel = 3
_VALUE_REPR.maxstring = _VALUE_REPR.maxother = 80
_VALUE_REPR.maxdict = _VALUE_REPR.maxlist = _VALUE_REPR.maxtuple = 10


class SettingsError(ValueError):
    """A setting that cannot be served.

    The message is one sentence with the field, its value and what would be accepted. The error can be pickled, so that
    it can cross vLLM's process boundary.

    Args:
        field: the field's path as the user wrote it, such as ``compression.keep``.
        value: what the user gave; None if nothing.
        expected: what would work instead; the message puts it after the word "expected".
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field} is {_VALUE_REPR.repr(self.value)}, expected {self.expected}."
