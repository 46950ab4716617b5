"""The shape of a model, as plans need it: sizes and boundaries, no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from duet_server.plan.errors import SettingsError


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of the language model."""

    num_layers: int
    hidden_size: int
    intermediate_size: int  # of a mixture of experts: of all experts that one token visits
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """The sizes in a Hugging Face text configuration."""
        num_heads = config.num_attention_heads
        num_experts = getattr(config, "num_experts_per_tok", None)
        expert_size = getattr(config, "moe_intermediate_size", None) if num_experts else None
        expert_size = expert_size or config.intermediate_size  # Mixtral's is the size of one expert
        return cls(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            intermediate_size=(num_experts or 1) * expert_size,
            num_heads=num_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            vocab_size=config.vocab_size,
        )


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of the vision tower and of the layers between it and the language model.

    A unit is what the tower attends within and what stage 1 chooses from: an image, a tile or a frame.

    Attributes:
        num_patches: N, the visual tokens of one image without CLS; None if images differ.
        has_cls: whether a class token enters the language model with the tokens that stage 1 keeps. D counts it.
        num_layers: the layers that run, up to the selected one.
        hidden_size: of the tower.
        intermediate_size: of the tower's MLP.
        patch_size: in pixels.
        image_size: in pixels; 0 if images differ.
        patches_per_token: how many patches one visual token is made of.
        num_global_layers: the layers that attend to the whole unit; None for all. The others attend to windows.
        patches_per_window: the patches of a full window.
        frames_per_patch: how many frames one patch covers; a still image counts as that many.
        is_gated: whether the MLP is gated, with three matrices and not two.
        projector: inputs and outputs of each linear layer behind the tower, per visual token; empty for the two layers
            of LLaVA.
        projects_all: whether these layers run on all tokens, before stage 1 cuts, and not on those that enter.
    """

    num_patches: int | None
    has_cls: bool
    num_layers: int
    hidden_size: int
    intermediate_size: int
    patch_size: int
    image_size: int
    patches_per_token: int = 1
    num_global_layers: int | None = None
    patches_per_window: int = 0
    frames_per_patch: int = 1
    is_gated: bool = False
    projector: tuple[tuple[int, int], ...] = ()
    projects_all: bool = False

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also after JSON has made lists of tuples."""
        return cls(**{**fields, "projector": tuple(map(tuple, fields["projector"]))})


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

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``, also after JSON has made lists of tuples."""
        vision = VisionShape.from_dict(fields["vision"])
        return cls(DecoderShape(**fields["decoder"]), vision, tuple(fields["boundaries"]))

    @property
    def segment_layers(self) -> tuple[int, ...]:
        """Layers of each segment, such as ``(16, 8, 8)`` for boundaries ``(16, 24)`` of 32."""
        edges = (0, *self.boundaries, self.decoder.num_layers)
        return tuple(end - start for start, end in pairwise(edges))

    @property
    def num_patches(self) -> int:
        """N, for a model whose images all have the same."""
        assert self.vision.num_patches is not None, "images differ"
        return self.vision.num_patches

    def at(self, num_tokens: int) -> Self:
        """The shape as an image of ``num_tokens`` visual tokens sees it."""
        return replace(self, vision=replace(self.vision, num_patches=num_tokens))


def default_boundaries(num_layers: int, first: int = 1) -> tuple[int, ...]:
    """``round(L/2)`` and ``round(3L/4)``: the authors' 16 and 24 of 32, scaled to L layers.

    Those below ``first`` or not inside (0, L) are left out.
    """
    scaled = {round(num_layers / 2), round(3 * num_layers / 4)}
    return tuple(sorted(layer_idx for layer_idx in scaled if first <= layer_idx < num_layers))


def check_boundaries(boundaries: Sequence[int], num_layers: int, first: int = 1) -> tuple[int, ...]:
    """Return ``boundaries`` as a tuple if they ascend strictly from ``first`` on, below ``num_layers``.

    Raises:
        SettingsError: otherwise.
    """
    is_list = isinstance(boundaries, Sequence) and not isinstance(boundaries, str)
    edges = tuple(boundaries) if is_list else ()
    inside = is_list and all(type(edge) is int and first <= edge < num_layers for edge in edges)
    if not inside or any(later <= earlier for earlier, later in pairwise(edges)):
        expected = f"ascending decoder layer indices from {first} to {num_layers - 1}"
        example = ",".join(map(str, default_boundaries(num_layers, first)))
        raise SettingsError("boundaries", boundaries, f"{expected}, such as {example}" if example else expected)
    return edges
