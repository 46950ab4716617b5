"""Asks questions about drawn pictures, whose right answers are known, under every method and budget.

Asks a running endpoint, or starts duet-server with each checkpoint in turn: once with its own stage 1, and once for
each of two baselines that replace stage 1's choice. Accuracy, visual tokens and requests/s come from the same requests.
Writes JSON, a table in Markdown and a plot.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import check_cli
from benchmarks.accuracy import plot, report
from benchmarks.accuracy.measure import FLAGS, Visit, measure_checkpoint, measure_endpoint
from benchmarks.accuracy.methods import SELECTIONS
from benchmarks.accuracy.questions import Question, read_questions
from benchmarks.accuracy.scoring import one_answer_baseline
from benchmarks.result_files import default_output

SHARES = (0.33, 0.22, 0.11, 0.07)
ENDPOINT = "endpoint"
ROUNDING = 1e-3  # layer averages in usage.compression are rounded


def check(args: argparse.Namespace, log: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Measure every checkpoint. If one fails, the results of the others are kept."""
    visits: dict[str, Visit] = {}
    failures = []
    with tempfile.TemporaryDirectory(prefix="duet-held-out-") as directory:
        questions = held_out(args, Path(directory))
        for name, checkpoint in args.serve or [(ENDPOINT, None)]:
            try:
                visits[name] = _visit(args, checkpoint, questions, log)
                failures += [f"{name}: {line}" for line in over_budget(visits[name])]
            except (RuntimeError, aiohttp.ClientError) as error:
                traceback.print_exception(error)
                failures.append(f"{name}: {error}")
        about = {"family": "synthetic", "questions": len(questions), "one_answer": one_answer_baseline(questions)}
    return {**about, "checkpoints": visits}, failures


def _visit(args: argparse.Namespace, checkpoint: str | None, questions: Sequence[Question], log: Path) -> Visit:
    if checkpoint is None:
        return measure_endpoint(args, questions)
    return measure_checkpoint(args, checkpoint, questions, log)


def held_out(args: argparse.Namespace, directory: Path) -> list[Question]:
    """The questions from ``--questions``, or new ones with pictures in ``directory``."""
    if args.questions:
        return read_questions(args.questions)
    from duet_training.demo.data import write_held_out_set

    return read_questions(write_held_out_set(directory, args.per_type, args.seed))


def over_budget(visit: Visit) -> list[str]:
    """A line for every point that used more visual tokens than its budget."""
    return [
        f"{point['method']} at {point['share']:.0%} used {point['layer_average']:g} visual tokens"
        for point in visit["points"]
        if point["layer_average"] is not None
        and point["layer_average"] > point["share"] * visit["num_patches"] + ROUNDING
    ]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = check_cli.parser("python -m benchmarks.accuracy synthetic", "accuracy", __doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--base-url",
        help="an OpenAI-compatible endpoint; OPENAI_API_KEY is sent if it is set. Its caches make later settings look "
        f"faster: to compare requests/s, start it with {' '.join(FLAGS[:3])}",
    )
    asked.add_argument(
        "--serve",
        type=_checkpoint,
        action="append",
        metavar="[NAME=]CHECKPOINT",
        help="start duet-server with it; repeatable",
    )
    parser.add_argument(
        "--questions", type=Path, metavar="JSON", help="file of held-out questions (new ones, drawn with the seed)"
    )
    parser.add_argument("--per-type", type=int, default=100, help="questions of each type to draw (%(default)s)")
    parser.add_argument(
        "--shares",
        type=_share,
        nargs="+",
        default=list(SHARES),
        help="budgets, as shares of all visual tokens (%(default)s)",
    )
    parser.add_argument(
        "--selections",
        nargs="+",
        choices=SELECTIONS,
        default=list(SELECTIONS),
        help="stage 1 of the servers to start (%(default)s)",
    )
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight (%(default)s)")
    parser.add_argument(
        "--blocks", type=int, default=4, help="blocks of questions, at which settings take turns (%(default)s)"
    )
    parser.add_argument(
        "--boundaries",
        type=int,
        nargs="+",
        help="decoder layers where servers may drop tokens (2 and every quarter of the depth)",
    )
    optional = argparse.BooleanOptionalAction
    parser.add_argument("--compile", action=optional, default=False, help="let the servers compile (%(default)s)")
    parser.add_argument(
        "--server-args", type=shlex.split, default=[], help="more flags for the servers, as one quoted string"
    )
    args = parser.parse_args(argv)
    args.output = args.output or default_output("accuracy")
    return args


def _checkpoint(word: str) -> tuple[str, str]:
    name, _, path = word.partition("=")
    return (name, path) if path else (Path(word).name, word)


def _share(word: str) -> float:
    share = float(word)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"share is {word}, expected a number between 0 and 1")
    return share


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    plot.figure_class()  # if matplotlib is missing, stop before anything is measured
    try:
        check_cli.run("accuracy", args, check)
    finally:
        if args.output.exists():
            report.write(args.output)
