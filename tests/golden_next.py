"""The golden cases of `tests/golden/llava_next`: results of the DUET-VLM authors' code on a tiny LLaVA-NeXT."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlavaNextConfig, LlavaNextModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from tests.golden_cases import GOLDEN_DIR, GoldenFields

FOLDER = GOLDEN_DIR / "llava_next"
CHECKPOINT = FOLDER / "checkpoint"
BOUNDARIES = (2, 4, 6)  # serve every case


def whole_rows(height: int, width: int) -> list[int]:
    """For each row of an uncompressed picture, the number of its token, by transformers; -1 for a newline."""
    config = LlavaNextConfig.from_pretrained(CHECKPOINT)
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    num_views = 1 + math.prod(get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, side))
    numbers = torch.arange(num_views * (side // patch) ** 2).view(num_views, -1, 1)
    model, newline = SimpleNamespace(config=config), torch.tensor([-1])
    (rows,), _ = LlavaNextModel.pack_image_features(model, [numbers], [(height, width)], "default", newline)
    return rows[:, 0].tolist()


class GoldenNextCase(GoldenFields):
    folder = FOLDER

    @property
    def picture_paths(self) -> list[Path]:
        return [FOLDER / name for name in self.fields["pictures"]]

    @property
    def keep(self) -> list[float] | None:
        """The case's keeps at `BOUNDARIES`; None if stage 2 is off."""
        if self.fields["layers"] is None:
            return None
        shares = dict(zip(self.fields["layers"], self.fields["keep"], strict=True))
        return [shares.get(layer, 1.0) for layer in BOUNDARIES]

    @property
    def compression(self) -> dict[str, Any] | str:
        """The `compression` field of a request."""
        counts = dict(
            zip(("dominant", "contextual", "cluster_width"), self.stage1 or (), strict=self.stage1 is not None)
        )
        settings = counts | ({"keep": self.keep, "guide": "all"} if self.keep else {})
        return settings or "off"
