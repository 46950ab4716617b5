"""Backbone: all that the engine knows of one of vLLM's vision-language models."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from duet_server.engine.backbones.decoder import Decoder
from duet_server.engine.cut import CutUnit
from duet_server.engine.tap import Tap, received_attention
from duet_server.engine.vllm_internals import VllmConfig
from duet_server.plan import Unit, VisionShape
from duet_server.plan.units import Grid


class Backbone:
    """A family of vLLM's models. It has no state: one instance serves every model of the family in the process.

    The defaults fit a tower whose last global attention is an ``MMEncoderAttention``, and a model whose visual rows are
    the outputs of its own ``embed_multimodal``, unit after unit.
    """

    modalities: Sequence[str] = ("image",)
    unit_name = "image"  # what a unit of an image is called: image or tile
    overview = 0  # which of an image's units shows the whole image
    decoder = Decoder()
    has_cls = False  # whether a class token enters with the tokens that stage 1 keeps
    in_place = True  # whether a contextual row stands at its anchor's place; if not, behind the dominant rows
    is_proven = False  # whether the published results of DUET-VLM cover the family

    def variant(self, hf_config: Any) -> "Backbone":
        """The backbone for a model of this configuration, if the family has several."""
        return self

    def check(self, vllm_config: VllmConfig) -> None:
        """Raise ValueError for variants of the model that the engine cannot serve."""

    def first_boundary(self, hf_config: Any) -> int:
        """The first decoder layer before which tokens may drop."""
        return 1

    def max_positions(self, hf_config: Any) -> int | None:
        """How many positions the decoder has, where tokens keep theirs; None if positions are those of the rows."""
        return None

    def vision_shape(self, hf_config: Any) -> VisionShape:
        """The sizes of the tower and of the layers behind it."""
        raise NotImplementedError

    def grids(self, hf_config: Any, modality: str, item: Any) -> list[Grid]:
        """The grid of each unit of one item, in the tower's order.

        Args:
            hf_config: the model's configuration.
            modality: the item's modality.
            item: vLLM's ``MultiModalKwargsItem``; only its fields on the CPU may be read.
        """
        raise NotImplementedError

    def embed_id(self, hf_config: Any, modality: str) -> int:
        """The token that stands for a visual row in a prompt."""
        token_id: int = getattr(hf_config, f"{modality}_token_id")
        return token_id

    def max_tokens_per_item(self, info: Any) -> dict[str, int] | None:
        """The most visual tokens of an item, by modality, where vLLM's ``info`` does not know: class tokens."""
        return None

    def tapped(self, model: Any) -> tuple[Any, str]:
        """The tower's last global attention, as its owner and the name of the owner's attribute."""
        raise NotImplementedError

    def embedding_size(self, model: Any) -> int:
        """Columns of one visual row, as ``embed_multimodal`` returns it."""
        size: int = model.get_language_model().model.embed_tokens.embedding_dim
        return size

    def select(self, inputs: dict[str, Any], items: Sequence[Sequence[Unit]], start: int, end: int) -> dict[str, Any]:
        """The inputs of the items ``[start, end)``. By default, every input has one entry for each item."""
        return {key: value[start:end] for key, value in inputs.items()}

    def encode(self, model: Any, embed: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """The rows that stage 1 cuts, unit after unit, ``[rows, dim]``; a class token's row before each unit's tokens.

        Args:
            model: vLLM's model.
            embed: vLLM's own ``embed_multimodal``.
            inputs: its arguments.
        """
        return torch.cat(list(embed(**inputs)))

    def score(
        self, model: Any, tap: Tap, inputs: dict[str, Any], units: Sequence[Unit]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stage 1's score ``[tokens]`` and metric ``[rows, any]`` of the units, from what the tap saw."""
        return received_attention(tap, [unit.num_tokens for unit in units], patches_per_token=1)

    def tile_columns(self, model: Any, inputs: dict[str, Any]) -> list[int] | None:
        """For each item, how many tiles stand side by side, if the dominant rows of all tiles are in raster order."""
        return None

    def whole_rows(self, hf_config: Any, item: Any) -> list[int] | None:
        """For each row of an image that stays whole, the token that stands there; -1 for a row that is none.

        Tokens are numbered through all units. None if every image has its units' tokens one after another.
        """
        return None

    def finish(
        self,
        model: Any,
        inputs: dict[str, Any],
        items: Sequence[Sequence[CutUnit]],
        units: Sequence[Sequence[Unit]],
    ) -> list[torch.Tensor]:
        """The rows of each item, ``[rows, embedding_size]``, from the kept rows of its units."""
        return [torch.cat([unit.rows for unit in item]) for item in items]


def flat_range(sizes: Sequence[int], start: int, end: int) -> slice:
    """The rows that entries ``[start, end)`` take in a tensor of entries of these sizes, one after another."""
    edges = [0, *accumulate(sizes)]
    return slice(edges[start], edges[end])
