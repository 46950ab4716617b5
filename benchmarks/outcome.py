"""How a long check is asked for and how it ends: seed, a file of figures, exit status."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.environment import environment

RESULTS = Path(__file__).parent / "results"
Check = Callable[[argparse.Namespace, Path], tuple[Mapping[str, Any], list[str]]]


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """With the options that all long checks have."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about, allow_abbrev=False)
    made.add_argument("--seed", type=int, default=0, help="of everything that is drawn (%(default)s)")
    made.add_argument("--output", type=Path, help=f"JSON file ({RESULTS.name}/{name}-<time>.json beside this file)")
    made.add_argument("--log", type=Path, help="keep what the server prints in this file")
    return made


def run(name: str, args: argparse.Namespace, check: Check) -> NoReturn:
    """Run a check, which gives its figures and what is wrong; write both down and exit, with 1 if anything is wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives this process
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"duet-{name}-") as directory:
        figures, failures = check(args, args.log or Path(directory) / "log")
    output = args.output or RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    options = {key: value for key, value in vars(args).items() if key not in ("output", "log")}
    keep({"environment": environment(), "options": options, "figures": figures, "failures": failures}, output)
    print("\n".join(["", *(f"FAILED: {failure}" for failure in failures), f"Kept in {output}"]), flush=True)
    sys.exit(1 if failures else 0)


def keep(result: Mapping[str, Any], output: Path) -> None:
    """Write a result, or what there is of it so far, as JSON; whoever reads the file never finds half of one."""
    output.parent.mkdir(parents=True, exist_ok=True)
    written = output.with_name(f"{output.name}.part")
    written.write_text(json.dumps(result, indent=1, default=str) + "\n")
    written.replace(output)


def without_ids(answer: str) -> str:
    """An error with its request's id taken out, so that equal ones are equal."""
    return re.sub(r"[0-9a-f]{16,}", "<id>", answer)


def table(headings: list[str], rows: list[list[object]]) -> str:
    """The first column to the left, numbers to the right."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )  # fmt: skip
