"""``python -m benchmarks.accuracy FAMILY``: the families of questions, and tables and plots from results."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Modules, each imported when it is asked for: lmms-eval has an environment without the servers' packages.
FAMILIES = {"synthetic": "synthetic", "lmms-eval": "lmms", "report": "report"}
ABOUT = """\
  synthetic   questions about drawn pictures, under every method and budget, against any OpenAI-compatible endpoint
  lmms-eval   TextVQA, GQA, POPE, MME and SQA by lmms-eval, with DUET's own settings, against a running duet-server
  report      the table and the plot of a result once more"""


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] in FAMILIES:
        importlib.import_module(f"benchmarks.accuracy.{FAMILIES[argv[0]]}").main(argv[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=f"{__doc__}\n\n{ABOUT}\n\nEach says more under FAMILY --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
