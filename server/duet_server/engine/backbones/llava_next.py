"""LLaVA-NeXT: a small view of the whole picture, and tiles of a larger one, each encoded by LLaVA-1.5's tower."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from duet_server.engine.backbones.llava import Llava
from duet_server.engine.cut import CutUnit
from duet_server.plan import Unit, VisionShape
from duet_server.plan.units import Grid


class LlavaNext(Llava):
    """Stage 1 cuts every tile and the small view on its own. Then there are no newlines, and padding is not removed."""

    unit_name = "tile"
    is_proven = False

    def variant(self, hf_config: Any) -> "LlavaNext":
        return self

    def vision_shape(self, hf_config: Any) -> VisionShape:
        shape = super().vision_shape(hf_config)
        return replace(shape, num_patches=None, image_size=0)

    def grids(self, hf_config: Any, modality: str, item: Any) -> list[Grid]:
        return super().grids(hf_config, modality, item) * _num_views(hf_config, item["image_sizes"].data.tolist())

    def max_tokens_per_item(self, info: Any) -> dict[str, int] | None:
        config = info.get_hf_config()
        sides = [side // config.vision_config.image_size for pair in config.image_grid_pinpoints for side in pair]
        most_tiles = max(rows * columns for rows, columns in zip(sides[::2], sides[1::2], strict=True))
        ((rows, columns),) = super().grids(config, "image", None)
        return {"image": max(info.get_max_image_tokens(), (1 + most_tiles) * (1 + rows * columns))}

    def encode(self, model: Any, embed: Any, inputs: dict[str, Any]) -> torch.Tensor:
        image = model._parse_and_validate_image_input(**inputs)
        # Hugging Face's processor pads pictures of one prompt with empty tiles to the same number.
        views = [
            pixels[: _num_views(model.config, size)]
            for pixels, size in zip(image["pixel_values"], image["image_sizes"].tolist(), strict=True)
        ]
        hidden: torch.Tensor = model.vision_tower(torch.cat(views), feature_select_strategy="full")
        return hidden.flatten(0, 1)

    def tile_columns(self, model: Any, inputs: dict[str, Any]) -> list[int]:
        return [_tiles(model.config, size)[1] for size in inputs["image_sizes"].tolist()]

    def whole_rows(self, hf_config: Any, item: Any) -> list[int]:
        """The small view, then the rows of all tiles together, without padding and with a newline behind each."""
        size, (grid, *tiles) = item["image_sizes"].data.tolist(), self.grids(hf_config, "image", item)
        num_tokens = math.prod(grid)
        places = torch.arange(num_tokens, num_tokens * (1 + len(tiles)))
        by_row = places.view(*_tiles(hf_config, size), *grid).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        (unpadded,) = unpad_image(by_row[None], size)
        return [*range(num_tokens), *torch.nn.functional.pad(unpadded, (0, 1), value=-1).flatten().tolist()]

    def finish(
        self,
        model: Any,
        inputs: dict[str, Any],
        items: Sequence[Sequence[CutUnit]],
        units: Sequence[Sequence[Unit]],
    ) -> list[torch.Tensor]:
        joined = [
            [CutUnit(_in_raster_order(item, item_units, num_columns), None)]
            for num_columns, item, item_units in zip(self.tile_columns(model, inputs), items, units, strict=True)
        ]
        return super().finish(model, inputs, joined, units)


def _tiles(config: Any, size: Sequence[int]) -> Grid:
    """Rows and columns of tiles of a picture of this height and width."""
    rows, columns = get_anyres_image_grid_shape(
        tuple(size), config.image_grid_pinpoints, config.vision_config.image_size
    )
    return rows, columns


def _num_views(config: Any, size: Sequence[int]) -> int:
    """The small view and the tiles."""
    return 1 + math.prod(_tiles(config, size))


def _in_raster_order(item: Sequence[CutUnit], units: Sequence[Unit], num_columns: int) -> torch.Tensor:
    """A picture's rows as the authors order them.

    The small view comes first. The tiles' dominant rows follow in raster order of the whole picture, then their class
    tokens, then their contextual rows, tile by tile.

    Args:
        item: the small view, then the tiles, row by row.
        units: their counts.
        num_columns: how many tiles stand side by side.
    """
    view, *tiles = item
    copied, merged, places = [], [], []
    for tile_idx, (tile, unit) in enumerate(zip(tiles, units[1:], strict=True)):
        copied.append(tile.rows[: unit.dominant])
        merged.append(tile.rows[unit.dominant :])
        assert tile.places is not None
        place, (tile_row, tile_column) = tile.places[1 : unit.dominant], divmod(tile_idx, num_columns)
        row = tile_row * unit.rows + place // unit.columns
        places.append((row * num_columns + tile_column) * unit.columns + place % unit.columns)
    order = torch.cat(places).argsort()
    dominant = torch.cat([rows[1:] for rows in copied])[order]
    return torch.cat([view.rows, dominant, *(rows[:1] for rows in copied), *merged])
