"""The golden cases of `tests/golden/llava_next`: results of the DUET-VLM authors' code on a tiny LLaVA-NeXT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden" / "llava_next"
CHECKPOINT = FOLDER / "checkpoint"
BOUNDARIES = (2, 4, 6)  # serve every case


@dataclass(frozen=True, eq=False)
class GoldenNextCase:
    """One case, with the fields of `cases.json`. Arrays are read from its `.npz` on first use."""

    fields: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return self.fields["name"]

    @property
    def tokens(self) -> list[int]:
        return self.fields["tokens"]

    @property
    def picture_paths(self) -> list[Path]:
        return [FOLDER / name for name in self.fields["pictures"]]

    @property
    def stage1(self) -> tuple[int, int, int] | None:
        """(D, C, W) of every tile; None if stage 1 is off."""
        fields = self.fields
        if fields["dominant"] is None:
            return None
        return fields["dominant"], fields["contextual"], fields["cluster_width"]

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

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / f"{self.name}.npz") as arrays:
            return dict(arrays)


def golden_next_cases() -> list[GoldenNextCase]:
    return [GoldenNextCase(fields) for fields in json.loads((FOLDER / "cases.json").read_text())]
