"""Where results are stored, and how they are written and printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def default_output(name: str) -> Path:
    """A new file for a benchmark's result, named after the time."""
    return RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"


def keep(result: Mapping[str, Any], output: Path) -> None:
    """Write a complete or partial result as JSON. The file is replaced atomically, so it is never half written."""
    output.parent.mkdir(parents=True, exist_ok=True)
    written = output.with_name(f"{output.name}.part")
    written.write_text(json.dumps(result, indent=1, default=str) + "\n")
    written.replace(output)


def table(headings: list[str], rows: list[list[object]]) -> str:
    """A text table: the first column is aligned left, the others right."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )  # fmt: skip
