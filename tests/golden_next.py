"""The golden cases of `tests/golden/llava_next`: results of the DUET-VLM authors' code on a tiny LLaVA-NeXT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.golden_cases import GOLDEN_DIR, GoldenFields

FOLDER = GOLDEN_DIR / "llava_next"
CHECKPOINT = FOLDER / "checkpoint"
BOUNDARIES = (2, 4, 6)  # serve every case


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
