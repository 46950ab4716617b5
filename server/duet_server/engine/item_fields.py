"""The fields that DUET's processor adds to every image: its units, and its length without stage 1."""

from collections.abc import Mapping, Sequence
from typing import Any

from duet_server.plan import Unit
from duet_server.plan.wire import UNITS_KEY, field_key


def units_of(item: Any, modality: str) -> list[Unit]:
    """The units of one item, from vLLM's ``MultiModalKwargsItem``; empty if it has no pixels to encode."""
    key = field_key(UNITS_KEY, modality)
    return [] if item is None or key not in item else [Unit(*row) for row in item[key].data.tolist()]


def pop_field(inputs: dict[str, Any], key: str, modalities: Sequence[str]) -> tuple[str, Any]:
    """Remove a field of all modalities from a batch's inputs, and return the modality that has it, and its values."""
    found = [(modality, inputs.pop(field_key(key, modality), None)) for modality in modalities]
    return next(((modality, values) for modality, values in found if values is not None), ("", None))


def without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A copy without these keys."""
    return {key: value for key, value in mapping.items() if key not in keys}
