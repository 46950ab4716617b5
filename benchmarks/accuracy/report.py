"""Writes a result's table in Markdown and its plot, next to its JSON file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import plot, tables


def write(path: Path) -> None:
    """Write the table to ``path`` with the suffix ``.md`` and, for the synthetic family, the plot with ``.png``."""
    result = json.loads(path.read_text())
    written = path.with_suffix(".md")
    written.write_text(f"{_about(result)}\n\n{tables.render(result['figures'])}\n")
    print(f"Table in {written}", flush=True)
    if any(visit["num_patches"] for visit in result["figures"].get("checkpoints", {}).values()):
        plot.draw(result["figures"], path.with_suffix(".png"))
        print(f"Plot in {path.with_suffix('.png')}", flush=True)


def _about(result: Mapping[str, Any]) -> str:
    """The machine and the versions of a measurement, and its failures."""
    found = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    changed = ", with uncommitted changes" if found["uncommitted_changes"] else ""
    where = f"{found['gpu'] or found['cpu']}, {found['cores']} cores; {versions}; commit {found['commit']}{changed}."
    return "\n".join([where, *(f"\n**Failed**: {failure}" for failure in result["failures"])])


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy report", description=__doc__)
    parser.add_argument("result", type=Path, nargs="+", help="JSON results of the other families")
    for path in parser.parse_args(argv).result:
        write(path)
