"""The fields that DUET's processor adds to every image, and takes away again before vLLM sees them."""

from collections.abc import Mapping, Sequence
from typing import Any

from duet_server.plan.wire import field_key


def pop_field(inputs: dict[str, Any], key: str, modalities: Sequence[str]) -> Any:
    """Remove a field of all modalities from a batch's inputs, and return its values, which one modality has."""
    found = [inputs.pop(field_key(key, modality), None) for modality in modalities]
    return next((values for values in found if values is not None), None)


def without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A copy without these keys."""
    return {key: value for key, value in mapping.items() if key not in keys}
