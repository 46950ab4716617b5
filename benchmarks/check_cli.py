"""The command line of a long check: its options, its result file and its exit status."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.environment import environment
from benchmarks.result_files import RESULTS, default_output, keep

Check = Callable[[argparse.Namespace, Path], tuple[Mapping[str, Any], list[str]]]


def parser(prog: str, name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all long checks have; the result file's name starts with ``name``."""
    made = argparse.ArgumentParser(prog=prog, description=about, allow_abbrev=False)
    made.add_argument("--seed", type=int, default=0, help="seed of all random choices (%(default)s)")
    made.add_argument("--output", type=Path, help=f"JSON file ({RESULTS.name}/{name}-<time>.json of this checkout)")
    made.add_argument("--log", type=Path, help="file for the server's output")
    return made


def run(name: str, args: argparse.Namespace, check: Check) -> NoReturn:
    """Run a check, write its figures and failures to a file, and exit; the status is 1 if there are failures."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped as well
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"duet-{name}-") as directory:
        figures, failures = check(args, args.log or Path(directory) / "log")
    output = args.output or default_output(name)
    options = {key: value for key, value in vars(args).items() if key not in ("output", "log")}
    keep({"environment": environment(), "options": options, "figures": figures, "failures": failures}, output)
    print("\n".join(["", *(f"FAILED: {failure}" for failure in failures), f"Kept in {output}"]), flush=True)
    sys.exit(1 if failures else 0)


def without_ids(answer: str) -> str:
    """An error without its request id, so that equal errors compare equal."""
    return re.sub(r"[0-9a-f]{16,}", "<id>", answer)
