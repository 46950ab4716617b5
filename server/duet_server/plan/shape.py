"""The shape of a model, as plans need it: sizes and boundaries, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from duet_server.plan.errors import SettingsError


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of the language model."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the vision tower.

    ``num_patches`` is N, the patches of one image without CLS. ``num_layers`` counts the layers that run, up to the
    selected one. ``patch_size`` and ``image_size`` are in pixels.
    """

    num_patches: int
    has_cls: bool
    num_layers: int
    hidden_size: int
    intermediate_size: int
    patch_size: int
    image_size: int

    @property
    def num_tokens(self) -> int:
        """Rows that the tower computes for one image: the patches, plus CLS if the tower has it."""
        return self.num_patches + int(self.has_cls)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A served model: its sizes, and the decoder layers before which stage 2 may drop tokens.

    Raises:
        SettingsError: if ``boundaries`` do not ascend strictly inside ``(0, num_layers)``.
    """

    decoder: DecoderShape
    vision: VisionShape
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        check_boundaries(self.boundaries, self.decoder.num_layers)

    @property
    def segment_layers(self) -> tuple[int, ...]:
        """Layers of each segment, such as ``(16, 8, 8)`` for boundaries ``(16, 24)`` of 32."""
        edges = (0, *self.boundaries, self.decoder.num_layers)
        return tuple(end - start for start, end in pairwise(edges))


def default_boundaries(num_layers: int) -> tuple[int, ...]:
    """``round(L/2)`` and ``round(3L/4)``, if inside (0, L): the authors' 16 and 24 of 32, scaled to L layers."""
    scaled = {round(num_layers / 2), round(3 * num_layers / 4)}
    return tuple(sorted(layer_idx for layer_idx in scaled if 0 < layer_idx < num_layers))


def check_boundaries(boundaries: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return ``boundaries`` as a tuple if they ascend strictly inside ``(0, num_layers)``.

    Raises:
        SettingsError: otherwise.
    """
    is_list = isinstance(boundaries, Sequence) and not isinstance(boundaries, str)
    edges = tuple(boundaries) if is_list else ()
    inside = is_list and all(type(edge) is int and 0 < edge < num_layers for edge in edges)
    if not inside or any(later <= earlier for earlier, later in pairwise(edges)):
        expected = f"ascending decoder layer indices from 1 to {num_layers - 1}"
        example = ",".join(map(str, default_boundaries(num_layers)))
        raise SettingsError("boundaries", boundaries, f"{expected}, such as {example}" if example else expected)
    return edges
