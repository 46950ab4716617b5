"""Measures the kernels of both stages alone: ``python -m benchmarks.kernels``.

On a machine with a GPU, every operation is timed at LLaVA-1.5-7B's sizes and compared with the shortest possible time
on this GPU. With ``--compile-only``, which needs no GPU, the kernels are compiled for Hopper and Ampere instead, and
the table shows the registers and the shared memory of each.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.result_files import keep


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--compile-only", action="store_true", help="compile ahead of time, measure nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    # Before the kernels are imported: with this variable, they would be interpreted and never compiled.
    os.environ.pop("TRITON_INTERPRET", None)
    results: Iterable[dict[str, Any]]  # each one extends the one before
    if args.compile_only:
        from benchmarks.kernels.resources import examine, render

        results = [examine()]
    elif torch.cuda.is_available():
        from benchmarks.kernels.timing import measure, render

        results = measure()
    else:
        print("There is no CUDA GPU to measure on; --compile-only needs none.")
        return
    where = environment()
    for found in results:
        result = {"environment": where, **found}
        if args.output:
            keep(result, args.output)
    print(json.dumps(result) if args.json else render(result))


if __name__ == "__main__":
    main()
