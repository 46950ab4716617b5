"""The golden cases of `tests/golden`: results of the DUET-VLM authors' code on two tiny checkpoints.

`@pytest.mark.parametrize("case", golden_cases(), ids=str)` gives ids such as `llava_gqa-full_schedule`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

GOLDEN_DIR = Path(__file__).parent / "golden"
MODEL_NAMES = ("llava_mha", "llava_gqa")
IMAGE_TOKEN_ID = 4
NUM_PATCHES = 144


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One case, with the fields of `cases.json`. Arrays are read from its `.npz` on first use."""

    model: str
    name: str
    dominant: int
    contextual: int
    cluster_width: int
    boundaries: list[int]
    keep: list[float]
    salient_prompt_indices: list[int] | None
    """Guiding positions in `prompt_token_ids`; None: all text after the image guides."""
    question: str
    prompt: str
    prompt_token_ids: list[int]
    """One `IMAGE_TOKEN_ID` where the image goes."""
    picture_path: Path
    prefill_len: int
    kv_lens_per_layer: list[int]
    dominant_patch_indices: list[int]
    """Highest score first, without CLS."""
    kept_rows_per_stage: list[list[int]]
    """Per boundary, rows of the sequence that enters it."""
    tokens: list[int]
    top2_margins: list[float]
    min_topk_gap: float

    def __str__(self) -> str:
        return f"{self.model}-{self.name}"

    @property
    def checkpoint(self) -> Path:
        return checkpoint_path(self.model)

    @property
    def compression(self) -> dict[str, Any]:
        """The `compression` field of a request. The server's own rule finds the salient words, if the case has any."""
        return {
            "dominant": self.dominant,
            "contextual": self.contextual,
            "cluster_width": self.cluster_width,
            "keep": self.keep,
            "guide": "all" if self.salient_prompt_indices is None else "salient",
        }

    @property
    def num_entering(self) -> int:
        """Visual tokens that enter the language model."""
        return self.dominant + self.contextual

    @property
    def image_start(self) -> int:
        """Prompt row of the first visual token."""
        return self.prompt_token_ids.index(IMAGE_TOKEN_ID)

    @property
    def expanded_token_ids(self) -> list[int]:
        """The prompt with the image's id repeated once per visual token, `[prefill_len]`."""
        start, ids = self.image_start, self.prompt_token_ids
        return [*ids[:start], *[IMAGE_TOKEN_ID] * self.num_entering, *ids[start + 1 :]]

    @property
    def guiding_rows(self) -> list[int]:
        """Rows of `expanded_token_ids` that guide stage 2, ascending."""
        indices = self.salient_prompt_indices
        if indices is None:
            indices = list(range(self.image_start + 1, len(self.prompt_token_ids)))
        return [idx + self.num_entering - 1 for idx in indices]

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(GOLDEN_DIR / self.model / f"{self.name}.npz") as arrays:
            return dict(arrays)

    @property
    def pixel_values(self) -> np.ndarray:
        """`[3, 168, 168]` float32, as the image processor returns them."""
        return self.arrays["pixel_values"]

    @property
    def stage1_features(self) -> np.ndarray:
        """`[dominant + contextual, 64]`, before the projector."""
        return self.arrays["stage1_features"]

    @property
    def projected(self) -> np.ndarray:
        """`[prefill_len, 128]`, the sequence that enters the decoder."""
        return self.arrays["projected"]

    @property
    def logits(self) -> np.ndarray:
        """`[12, 261]`, one row per token of `tokens`."""
        return self.arrays["logits"]


@dataclass(frozen=True, eq=False)
class GoldenFields:
    """One case of another family, with the fields of its folder's `cases.json`. Arrays are read on first use."""

    folder: ClassVar[Path]
    fields: dict[str, Any]

    @classmethod
    def all(cls) -> list[Self]:
        """The folder's cases, in the file's order."""
        return [cls(fields) for fields in json.loads((cls.folder / "cases.json").read_text())]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return self.fields["name"]

    @property
    def tokens(self) -> list[int]:
        return self.fields["tokens"]

    @property
    def stage1(self) -> tuple[int, int, int] | None:
        """(D, C, W) of every unit; None if stage 1 is off."""
        counts = self.fields["dominant"], self.fields["contextual"], self.fields["cluster_width"]
        return None if counts[0] is None else counts

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{self.name}.npz") as arrays:
            return dict(arrays)


def checkpoint_path(model: str) -> Path:
    """The checkpoint of one of `MODEL_NAMES`."""
    return GOLDEN_DIR / model / "checkpoint"


def golden_cases(model: str | None = None) -> list[GoldenCase]:
    """All cases, or those of one model, in the files' order."""
    models = MODEL_NAMES if model is None else (model,)
    return [_case(name, fields) for name in models for fields in _read_cases(name)]


def _read_cases(model: str) -> list[dict]:
    return json.loads((GOLDEN_DIR / model / "cases.json").read_text())


def _case(model: str, fields: dict) -> GoldenCase:
    boundaries = fields.pop("layers")
    picture_path = GOLDEN_DIR / model / fields.pop("picture")
    return GoldenCase(model=model, boundaries=boundaries, picture_path=picture_path, **fields)
