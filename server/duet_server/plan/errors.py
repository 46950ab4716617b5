"""The one error that a user's own mistake raises."""

from __future__ import annotations

from reprlib import Repr

# Whatever a client sends, the sentence stays short: long text is cut in its middle, deep nesting at its third level.
_VALUE_REPR = Repr()
_VALUE_REPR.maxlevel = 3
_VALUE_REPR.maxstring = _VALUE_REPR.maxother = 80
_VALUE_REPR.maxdict = _VALUE_REPR.maxlist = _VALUE_REPR.maxtuple = 10


class SettingsError(ValueError):
    """A setting that cannot be served.

    Its text is one sentence with the field, the value and what would be accepted. It survives pickling, so that it
    can cross vLLM's process boundary.

    Args:
        field: the field's path as the user wrote it, such as ``compression.keep``.
        value: what the user gave (None: nothing).
        expected: what would work instead, to be read after "expected".
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.field} is {_VALUE_REPR.repr(self.value)}, expected {self.expected}."
