"""``python -m benchmarks.accuracy FAMILY``: the families of questions, and tables and plots from results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.accuracy import lmms, report, synthetic

FAMILIES = {"synthetic": synthetic.main, "lmms-eval": lmms.main, "report": report.main}
ABOUT = """\
  synthetic   questions about drawn pictures, under every method and budget, against any OpenAI-compatible endpoint
  lmms-eval   TextVQA, GQA, POPE, MME and SQA by lmms-eval, with DUET's own settings, against a running duet-server
  report      the table and the plot of a result once more"""


def main(words: Sequence[str]) -> None:
    if words and words[0] in FAMILIES:
        FAMILIES[words[0]](words[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=f"{__doc__}\n\n{ABOUT}\n\nEach says more under FAMILY --help.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.parse_args(words)


if __name__ == "__main__":
    main(sys.argv[1:])
