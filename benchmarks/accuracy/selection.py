"""Two baselines that replace stage 1's choice, as vLLM plugins that only this benchmark loads.

A server started with ``plugin_environment`` cuts every image to D + C rows as its plan says, but at random or by
pooling instead of by attention. If a plugin fails to load, vLLM continues without it. Therefore, a replacement writes a
line to the engine's log when it is first called.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from duet_server.plan import Unit

OWN, RANDOM_KEEP, UNIFORM_POOLING = "duet", "duet_random_keep", "duet_uniform_pooling"
PLUGIN_FOLDER = Path(__file__).parent / "selection_plugin"  # holds the entry points
CHECKOUT = Path(__file__).parents[2]
LARGEST_ASPECT = 2  # a pooling grid's width by its height, at most

Choice = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # rows of a unit, their scores, how many stay


def plugin_environment(selection: str) -> dict[str, str]:
    """Environment variables of a server for ``selection``: OWN or one of the two replacements."""
    if selection == OWN:
        return {"VLLM_PLUGINS": OWN}
    paths = [str(CHECKOUT), str(PLUGIN_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"VLLM_PLUGINS": f"{OWN},{selection}", "PYTHONPATH": os.pathsep.join(paths)}


def says_in_log(selection: str) -> str:
    """The line in the engine's log after the first call of a replacement. The engine's warm-up already calls it."""
    return f"Stage 1 is replaced by {selection}."


def use_random_keep() -> None:
    """Entry point of ``vllm.general_plugins``."""
    from duet_server.engine.backbones.llava import Llava

    own = Llava.score

    def random_score(
        self: Any, model: Any, tap: Any, inputs: dict[str, Any], units: Sequence[Unit]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        score, metric = own(self, model, tap, inputs, units)
        return random_scores(inputs["pixel_values"], units[0].num_tokens).flatten().to(score.device), metric

    Llava.score = random_score  # type: ignore[method-assign]
    _put_in_place(RANDOM_KEEP, random_keep)


def use_uniform_pooling() -> None:
    """Entry point of ``vllm.general_plugins``."""
    _put_in_place(UNIFORM_POOLING, uniform_pooling)


def random_keep(rows: torch.Tensor, score: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The patches with the highest scores, in patch order."""
    return rows[score.topk(num_rows).indices.sort().values]


def uniform_pooling(rows: torch.Tensor, score: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The patches, averaged in a grid of as many cells, row by row."""
    return pooled(rows, num_rows)


def random_scores(pixel_values: torch.Tensor, num_patches: int) -> torch.Tensor:
    """Uniform random scores ``[images, patches]`` on the CPU that depend only on each picture's pixels."""
    generators = (torch.Generator().manual_seed(_seed(pixels)) for pixels in pixel_values)
    return torch.stack([torch.rand(num_patches, generator=generator) for generator in generators])


def pooled(patches: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Adaptive average pooling of a square of patches ``[N, dim]`` to ``[num_cells, dim]``, summed in float32."""
    side = math.isqrt(len(patches))
    assert side * side == len(patches), f"{patches.shape=} is not a square"
    square = patches.float().T.unflatten(1, (side, side))  # [dim, side, side]
    return torch.nn.functional.adaptive_avg_pool2d(square, grid(num_cells)).flatten(1).T.to(patches.dtype)


def grid(num_cells: int) -> tuple[int, int]:
    """Rows and columns of a grid with ``num_cells`` cells, as square as possible and never higher than wide."""
    rows = next(rows for rows in range(math.isqrt(num_cells), 0, -1) if num_cells % rows == 0)
    return rows, num_cells // rows


def largest_grid(num_cells: int) -> int:
    """The largest number of cells up to ``num_cells`` whose grid is at most LARGEST_ASPECT times as wide as high."""
    return next(num for num in range(num_cells, 0, -1) if grid(num)[1] <= LARGEST_ASPECT * grid(num)[0])


def _seed(pixels: torch.Tensor) -> int:
    content = pixels.float().contiguous().cpu().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:7])


def _put_in_place(selection: str, choose: Choice) -> None:
    """Replace stage 1's cut, so that a unit's rows come from ``choose``, without CLS."""
    from duet_server.engine import model
    from duet_server.engine.cut import CutUnit, Encoded, split_units

    @functools.cache
    def announce() -> None:
        print(says_in_log(selection), file=sys.stderr, flush=True)

    def cut(encoded: Encoded, units: Sequence[Unit], *, has_cls: bool, in_place: bool) -> list[CutUnit]:
        announce()
        rows, scores, _ = split_units(encoded, units, has_cls=has_cls)
        patches = [unit_rows[int(has_cls) :] for unit_rows in rows]
        return [
            CutUnit(choose(unit_rows, score, unit.num_entering) if unit.is_cut else unit_rows, None)
            for unit_rows, score, unit in zip(patches, scores, units, strict=True)
        ]

    model.cut = cut
