"""Runs Schemathesis on every operation in a server's OpenAPI: ``python -m benchmarks.robustness.api_fuzz``.

It sends valid and invalid requests. Every request must be answered, no answer may be a 5xx except those in EXPECTED,
and no process of the server may end. The server limits the number of answers and their tokens, so that a case takes
less than a second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import check_cli
from benchmarks.result_files import table
from benchmarks.robustness.api_fuzz_hooks import MODEL_NAME, RECORD
from benchmarks.robustness.small_server import ServerProcesses, small_server

NAME = "api_fuzz"
FLAGS = ("--override-generation-config", '{"max_new_tokens": 8}')
FEW_ANSWERS = {"VLLM_MAX_N_SEQUENCES": "4"}
PHASES = ("examples", "coverage", "fuzzing")
# The served model does not support these operations; OpenAPI lists the statuses.
EXPECTED = {("POST /v1/systemone", 501)}
CHECKOUT = Path(__file__).parents[2]

Answers = dict[str, Counter[int]]  # by operation: the count of each status


def fuzz(
    url: str, *, examples: int, seed: int, phases: Sequence[str] = PHASES, only: str = "", limit_s: int | None = None
) -> tuple[Answers, list[str]]:
    """Run Schemathesis against a server. Returns the answers, and the faults, each with a request that shows it.

    Args:
        url: the server's URL.
        examples: the most generated requests per operation.
        seed: the seed of the generated requests.
        phases: Schemathesis's phases.
        only: a regular expression that selects paths.
        limit_s: seconds after which the run counts as hung.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--phases", ",".join(phases)]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--mode", "all", "--request-timeout", "60"]
    command += ["--checks", "not_a_server_error", "--continue-on-failure", "--no-shrink", "--no-color"]
    command += ["--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off"]
    command += ["--include-path-regex", only] if only else []
    with tempfile.TemporaryDirectory(prefix="duet-fuzz-") as directory:
        record = Path(directory) / "record"
        record.touch()
        environment = {"SCHEMATHESIS_HOOKS": "benchmarks.robustness.api_fuzz_hooks", "PYTHONPATH": str(CHECKOUT)}
        environment |= {RECORD: str(record), MODEL_NAME: served_model(url)}
        done = subprocess.run(
            command,
            cwd=directory,  # Schemathesis leaves files in it
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        answers, faults = read(record.read_text().splitlines())
    if not answers or done.returncode not in (0, 1):  # 1: it found faults, which are recorded
        faults.append(f"Schemathesis ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return answers, faults


def read(lines: Sequence[str]) -> tuple[Answers, list[str]]:
    """Read the record of the hooks: every operation's statuses, and one line for every different fault."""
    answers: defaultdict[str, Counter[int]] = defaultdict(Counter)
    faults: dict[tuple[str, int, str], list[str]] = {}
    for line in map(json.loads, lines):
        operation, status = line["operation"], line["status"]
        answers[operation][status] += 1
        if (status >= 500 or status == 0) and (operation, status) not in EXPECTED:
            answer = check_cli.without_ids(line["answer"])
            faults.setdefault((operation, status, answer), []).append(line["request"])
    return dict(answers), [f"{len(r)} times {o}: {s} {a}, such as {min(r, key=len)}" for (o, s, a), r in faults.items()]


def render(answers: Answers) -> str:
    classes = {
        operation: Counter(_class(status) for status in counts.elements()) for operation, counts in answers.items()
    }
    columns = ["2xx", "4xx", "5xx", "none"]
    rows: list[list[object]] = [[name, *(classes[name][column] for column in columns)] for name in sorted(classes)]
    total = sum(classes.values(), Counter[str]())
    return table(["operation", *columns], [*rows, ["all", *(total[column] for column in columns)]])


def _class(status: int) -> str:
    return f"{status // 100}xx" if status else "none"


def served_model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        return json.load(response)["data"][0]["id"]


def is_healthy(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
        return response.status == 200


def check(args: argparse.Namespace, log: Path) -> tuple[dict[str, Any], list[str]]:
    with small_server(log, *FLAGS, **FEW_ANSWERS) as url:
        processes = ServerProcesses.of(url)
        assert is_healthy(url)
        limit_s = int(60 * args.minutes)
        answers, failures = fuzz(
            url, examples=args.examples, seed=args.seed, phases=args.phases, only=args.only, limit_s=limit_s
        )
        print(render(answers), flush=True)
        failures += [f"{process} has ended" for process in processes.ended()]
        failures += [] if is_healthy(url) else ["the server is not healthy afterwards"]
        return {"answers": answers}, failures


def main() -> None:
    parser = check_cli.parser("python -m benchmarks.robustness.api_fuzz", NAME, __doc__)
    parser.add_argument("--examples", type=int, default=200, help="generated requests per operation (%(default)s)")
    parser.add_argument(
        "--phases", nargs="+", choices=PHASES, default=list(PHASES), help="Schemathesis's phases (%(default)s)"
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="only operations with a matching path")
    parser.add_argument("--minutes", type=float, default=45, help="give up after this time (%(default)s)")
    check_cli.run(NAME, parser.parse_args(), check)


if __name__ == "__main__":
    main()
