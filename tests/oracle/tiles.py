"""LLaVA-NeXT in the general oracle: rows of a picture's views mix, so a picture is cut before the decoder's loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from tests.oracle.general import Counts, Encoded, Generated, Oracle, choose
from tests.oracle.vision_stage import tower_features


class LlavaNextOracle(Oracle):
    """The authors' rule. A unit is a view: the small one of the whole picture, then its tiles, row by row.

    With stage 1 on, there are no newlines, and padding is not removed. With stage 1 off, and for a picture that would
    have more tokens with it, rows are those of transformers, and a picture has one list of places.
    """

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Sequence[int],
        images: Sequence[Image.Image],
        *,
        counts: Counts = lambda num_tokens: None,
        **options: Any,
    ) -> Generated:
        """As :meth:`Oracle.generate`. ``counts`` include the class token of a view."""
        pictures = [self.cut(image, counts) for image in images]
        generated = super().generate(input_ids, [rows for rows, _ in pictures], **options)
        return replace(generated, places=[places for _, views in pictures for places in views])

    def encode(self, image: Any) -> list[Encoded]:
        """One unit, which stays whole, of the rows that :meth:`cut` has made of a picture ``[n, width]``."""
        return [Encoded(image, torch.zeros(len(image)), image, (1, len(image)))]

    def cut(self, image: Image.Image, counts: Counts) -> tuple[Tensor, list[list[int]]]:
        """The rows ``[n, width]`` that enter the decoder, and for each view the patches that its rows stand at."""
        views, whole = self.views(image), self._rows_of_stock(image)
        of_view = counts(len(views[0].score))
        # Tiles that are cut keep their padding, and each brings its class token.
        if of_view is None or len(views) * (sum(of_view[:2]) - 1) > len(whole):
            return whole, [list(range(len(whole)))]
        chosen = [choose(view, of_view) for view in views]
        rows = self._in_the_authors_order(chosen, views[0].grid, self._num_tile_columns(image), of_view[0])
        return self.model.model.multi_modal_projector(rows), [places for _, places in chosen]

    def views(self, image: Image.Image) -> list[Encoded]:
        """The small view and the tiles, before the projector."""
        config, tower = self.model.config, self.model.model.vision_tower
        tower = getattr(tower, "vision_model", tower)
        side = config.vision_config.image_size // config.vision_config.patch_size
        views = []
        for pixels in self._inputs(image)["pixel_values"][0]:
            hidden, score, metric = tower_features(tower, pixels, config.vision_feature_layer)
            views.append(Encoded(hidden[1:], score, metric[1:], (side, side), hidden[0]))
        return views

    def _inputs(self, image: Image.Image) -> Any:
        return self.processor.image_processor(images=[image], return_tensors="pt")

    def _rows_of_stock(self, image: Image.Image) -> Tensor:
        config, inputs = self.model.config, self._inputs(image)
        (rows,) = self.model.model.get_image_features(
            inputs["pixel_values"],
            inputs["image_sizes"],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output
        return rows

    def _num_tile_columns(self, image: Image.Image) -> int:
        config = self.model.config
        _, width = select_best_resolution((image.height, image.width), config.image_grid_pinpoints)
        return width // config.vision_config.image_size

    @staticmethod
    def _in_the_authors_order(
        chosen: Sequence[tuple[Tensor, list[int]]], grid: tuple[int, int], num_tile_columns: int, dominant: int
    ) -> Tensor:
        """The small view; all tiles' dominant patches by row and column of the picture; class tokens; contextual rows.

        Args:
            chosen: what :func:`choose` gave for each view: class token, dominant rows by place, contextual rows.
            grid: rows and columns of patches in a view.
            num_tile_columns: tiles that stand side by side.
            dominant: rows of a view before the contextual ones.
        """
        (small_view, _), *tiles = chosen
        patches: list[tuple[int, int, Tensor]] = []
        for tile_idx, (rows, places) in enumerate(tiles):
            top, left = tile_idx // num_tile_columns * grid[0], tile_idx % num_tile_columns * grid[1]
            for row, place in zip(rows[1:dominant], places[1:dominant], strict=True):
                patches.append((top + place // grid[1], left + place % grid[1], row))
        patches.sort(key=lambda patch: patch[:2])
        class_tokens = [rows[:1] for rows, _ in tiles]
        contextual = [rows[dominant:] for rows, _ in tiles]
        return torch.cat([small_view, *(row[None] for _, _, row in patches), *class_tokens, *contextual])
