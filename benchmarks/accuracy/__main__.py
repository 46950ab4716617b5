"""``python -m benchmarks.accuracy FAMILY``: runs a family of questions, or renders a result as a table and a plot."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# A module is imported only when it is needed: lmms-eval's environment may lack the server's packages.
FAMILIES = {"synthetic": "synthetic", "lmms-eval": "lmms", "report": "report"}
ABOUT = """\
  synthetic   questions about drawn pictures, under every method and budget, against any OpenAI-compatible endpoint
  lmms-eval   TextVQA, GQA, POPE, MME and SQA with lmms-eval, under DUET's own settings, against a running duet-server
  report      writes the table and the plot of an existing result"""


def main(argv: Sequence[str]) -> None:
    if argv and argv[0] in FAMILIES:
        importlib.import_module(f"benchmarks.accuracy.{FAMILIES[argv[0]]}").main(argv[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=f"{__doc__}\n\n{ABOUT}\n\nFAMILY --help describes each one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
