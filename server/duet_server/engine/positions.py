"""Positions of models whose tokens have three: time, height and width (M-RoPE). They survive compression.

The host decides where text and units stand, as if nothing had been cut. Only the device knows which tokens of a unit
stage 1 keeps. So each kept row carries its place in the unit's grid behind its embedding, as bits, through vLLM's
encoder cache.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from duet_server.engine.cut import CutUnit
from duet_server.engine.vllm_internals import PlaceholderRange
from duet_server.plan import Unit, any_cut
from duet_server.plan.wire import units_of

AXES = 3


class KeptPositions:
    """Mixed into a ``DuetModel`` of a family whose tokens keep their positions."""

    backbone: Any
    placed: torch.Tensor | None = None  # [rows, 3] to add to the positions of the next forward; None for nothing

    def finish_items(
        self: Any, inputs: dict[str, Any], items: Sequence[Sequence[CutUnit]], units: Sequence[Sequence[Unit]]
    ) -> list[torch.Tensor]:
        """The rows of each item, which carry their places."""
        rows = super().finish_items(inputs, items, units)  # type: ignore[misc]
        return [_with_places(*entry) for entry in zip(rows, items, units, strict=True)]

    def embed_input_ids(
        self: Any,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """vLLM's own, without the places, which are noted for the forward that follows."""
        self.placed = None
        size = self.backbone.embedding_size(self)
        if multimodal_embeddings is not None and any(rows.shape[1] > size for rows in multimodal_embeddings):
            places = torch.cat([_places_of(rows, size) for rows in multimodal_embeddings])
            self.placed = places.new_zeros(len(input_ids), AXES)
            self.placed.masked_scatter_(is_multimodal.to(places.device, non_blocking=True)[:, None], places)
            multimodal_embeddings = [rows[:, :size] for rows in multimodal_embeddings]
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **kwargs
        )

    def forward(self: Any, input_ids: Any, positions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.placed is not None:
            positions = positions.clone()
            positions[:, : len(self.placed)] += self.placed.T
            self.placed = None
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]

    def get_mrope_input_positions(
        self: Any, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        """vLLM's own positions of the uncompressed prompt, for the rows that are there.

        A row of an item that was cut stands at the place of its unit's first token until ``forward`` adds its own.
        """
        config = self.config
        full, rows, features = list[int](), list[int](), []
        end = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            rows.extend(range(len(full), len(full) + place.offset - end))
            full += input_tokens[end : place.offset]
            end = place.offset + place.length
            start = len(full)
            units = units_of(feature.data, feature.modality)
            embed_id = self.backbone.embed_id(config, feature.modality)
            _expand(full, rows, input_tokens[place.offset : end], units, embed_id)
            features.append(replace(feature, mm_position=PlaceholderRange(start, len(full) - start)))
        rows.extend(range(len(full), len(full) + len(input_tokens) - end))
        full += input_tokens[end:]
        positions, delta = super().get_mrope_input_positions(full, features)  # type: ignore[misc]
        return positions[:, rows], delta + len(full) - len(input_tokens)


def _expand(full: list[int], rows: list[int], tokens: Sequence[int], units: Sequence[Unit], embed_id: int) -> None:
    """Append an item's uncompressed tokens to ``full``, and to ``rows`` the place in ``full`` of each of its tokens."""
    if not any_cut(units):
        rows.extend(range(len(full), len(full) + len(tokens)))
        full += tokens
        return
    remaining, row = iter(units), 0
    while row < len(tokens):
        if tokens[row] != embed_id:
            rows.append(len(full))
            full.append(tokens[row])
            row += 1
            continue
        unit = next(remaining)
        first, num_rows = len(full), unit.num_entering
        rows += [first] * num_rows
        full += [embed_id] * unit.num_tokens
        row += num_rows


def _with_places(rows: torch.Tensor, item: Sequence[CutUnit], units: Sequence[Unit]) -> torch.Tensor:
    places = [_grid_places(cut_unit, unit) for cut_unit, unit in zip(item, units, strict=True)]
    return torch.cat([rows, torch.cat(places).view(rows.dtype)], dim=1)


def _grid_places(cut_unit: CutUnit, unit: Unit) -> torch.Tensor:
    """(0, row, column) of each kept token in its unit's grid, ``[kept, 3]`` int32."""
    place = cut_unit.places
    if place is None:
        place = torch.arange(len(cut_unit.rows), device=cut_unit.rows.device)
    return torch.stack([torch.zeros_like(place), place // unit.columns, place % unit.columns], dim=1).to(torch.int32)


def _places_of(rows: torch.Tensor, size: int) -> torch.Tensor:
    """The places behind an item's embeddings, ``[rows, 3]``; zeros if it was not cut."""
    if rows.shape[1] == size:
        return torch.zeros(len(rows), AXES, dtype=torch.int64, device=rows.device)
    return rows[:, size:].contiguous().view(torch.int32).long()
