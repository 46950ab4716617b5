"""The golden cases of `tests/golden/qwen2_5_vl`: results of the DUET-VLM authors' code on a tiny Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.golden_cases import GOLDEN_DIR, GoldenFields

FOLDER = GOLDEN_DIR / "qwen2_5_vl"
CHECKPOINT = FOLDER / "checkpoint"
BOUNDARIES = (4, 6)  # serve every case: the cases with one boundary have one of these
IMAGE_TOKEN_ID = 6


class GoldenQwenCase(GoldenFields):
    folder = FOLDER

    @property
    def picture_path(self) -> Path:
        return FOLDER / self.fields["picture"]

    @property
    def has_stage1(self) -> bool:
        return self.fields["dominant"] is not None

    @property
    def keep(self) -> list[float]:
        """The case's keeps at `BOUNDARIES`. A share that does not fall again drops nothing there."""
        shares = dict(zip(self.fields["layers"] or (), self.fields["keep"] or (), strict=True))
        first = shares.get(BOUNDARIES[0], 1.0)
        return [first, shares.get(BOUNDARIES[1], first)]

    @property
    def compression(self) -> dict[str, Any] | str:
        """The `compression` field of a request."""
        if not self.has_stage1:
            return "off"
        counts = dict(zip(("dominant", "contextual", "cluster_width"), self.stage1, strict=True))
        return {**counts, "keep": self.keep, "guide": "all"}

    @property
    def visual_counts(self) -> list[int]:
        """Visual tokens of each segment."""
        kv_lens, num_text = self.fields["kv_lens_per_layer"], self.fields["prefill_len"] - self.fields["visual_tokens"]
        return [kv_lens[layer] - num_text for layer in (0, *BOUNDARIES)]

    @property
    def kept_rows(self) -> list[list[int]]:
        """Per boundary that drops, rows of the sequence that enters it."""
        return self.fields.get("kept_rows_per_stage", [])
