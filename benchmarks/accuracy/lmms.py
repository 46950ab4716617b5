"""Runs TextVQA, GQA, POPE, MME and SQA with lmms-eval, against a running duet-server with LLaVA-1.5-7B.

Each task runs once for every ``compression``. The defaults are ``off`` and DUET's own settings for 192, 128 and 64 of
576 visual tokens. lmms-eval must be installed in this environment, which need not be the server's. Its downloads need a
Hugging Face token.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import check_cli
from benchmarks.accuracy import report
from benchmarks.accuracy.lmms_benchmarks import BENCHMARKS, LMMS_EVAL, kept, task_config
from benchmarks.accuracy.methods import OFF
from benchmarks.accuracy.sweep import say
from benchmarks.result_files import default_output

DUET_SETTINGS = (OFF, "light", "balanced", "aggressive")


def check(args: argparse.Namespace, log: Path) -> tuple[Mapping[str, Any], list[str]]:
    """Run the tasks under each setting. If one setting fails, the results of the others are kept."""
    settings: list[dict[str, Any]] = []
    failures = []
    tasks = load_tasks(args.tasks)
    for compression in args.compression:
        say(f"running the tasks with compression {compression}")
        try:
            settings.append(evaluate(args, tasks, compression, log.parent))
        except Exception as error:  # a task's own code may raise anything
            traceback.print_exception(error)
            failures.append(f"{compression}: {error!r}")
    failures += [f"{entry['compression']}: {entry['failed']} requests failed" for entry in settings if entry["failed"]]
    off = next((entry for entry in settings if entry["compression"] == OFF), None)
    for entry in settings:
        whole = off is not None and not off["failed"] and not entry["failed"]
        entry["kept"] = kept(entry["scores"], off["scores"]) if whole else None
    about = {"family": "lmms-eval", "lmms_eval": version("lmms-eval"), "limit": args.limit}
    return {**about, "settings": settings}, failures


def load_tasks(names: Sequence[str]) -> list[Any]:
    """lmms-eval's chat tasks with their data. Its default has options for another kind of model."""
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(model_name="openai")
    return list(manager.load_task_or_group([task_config(name) for name in names], task_type="chat").values())


def evaluate(
    args: argparse.Namespace, tasks: list[Any], compression: str | dict[str, Any], directory: Path
) -> dict[str, Any]:
    """Run all tasks under one setting: scores, lmms-eval's own metrics, and the reported visual tokens."""
    from lmms_eval.evaluator import simple_evaluate
    from openai import OpenAI

    from benchmarks.accuracy.lmms_model import CompressedOpenAI

    api_key = os.environ.get("OPENAI_API_KEY", "none")
    model = CompressedOpenAI(
        compression,
        model_version=args.model or OpenAI(base_url=args.base_url, api_key=api_key).models.list().data[0].id,
        base_url=args.base_url,
        api_key=api_key,
        num_concurrent=args.concurrency,
    )
    results = simple_evaluate(
        model=model,
        tasks=tasks,
        limit=args.limit,
        log_samples=False,
        cli_args=argparse.Namespace(output_path=str(directory), process_with_media=False),
    )["results"]
    tokens = [usage["visual_tokens"]["layer_average"] for usage in model.usages]
    return {
        "compression": compression,
        "scores": {b.name: b.score(results[b.task]) for b in BENCHMARKS if b.task in results},
        "layer_average": statistics.mean(tokens) if tokens else None,
        "requests": len(tokens),
        "failed": model.num_failed,
        "metrics": results,
    }


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = check_cli.parser("python -m benchmarks.accuracy lmms-eval", "accuracy-lmms-eval", __doc__)
    tasks = [benchmark.task for benchmark in BENCHMARKS]
    parser.add_argument("--base-url", default="http://localhost:8000/v1", help="(%(default)s)")
    parser.add_argument("--model", help="served name of the model (the server's first model)")
    parser.add_argument(
        "--compression",
        type=_compression,
        nargs="+",
        default=list(DUET_SETTINGS),
        help="preset names or JSON objects (%(default)s)",
    )
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, help="(%(default)s)")
    parser.add_argument("--concurrency", type=int, default=32, help="requests in flight (%(default)s)")
    parser.add_argument(
        "--limit", type=int, help="ask only the first questions of each task; an even number for MME (all)"
    )
    args = parser.parse_args(argv)
    args.output = args.output or default_output("accuracy-lmms-eval")
    return args


def _compression(word: str) -> str | dict[str, Any]:
    return json.loads(word) if word.startswith("{") else word


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    try:
        import lmms_eval  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"lmms-eval is missing: pip install {shlex.join(LMMS_EVAL)}") from error
    try:
        check_cli.run("accuracy-lmms-eval", args, check)
    finally:
        if args.output.exists():
            report.write(args.output)
