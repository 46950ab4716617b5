"""Tokens of stock vLLM, which loads no plugin, from a process of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.engine.in_process import Ask, in_process_engine

Job = tuple[Path, dict[str, Any], Sequence[Ask]]  # a checkpoint, the engine's arguments, requests of one batch


def stock_tokens(jobs: Sequence[Job], path: Path) -> list[list[list[int]]]:
    """For each job, the tokens of its requests. ``path`` is a file to write."""
    path.write_bytes(pickle.dumps(jobs))
    command = [sys.executable, "-m", "tests.engine.stock_tokens", str(path)]
    subprocess.run(command, env={**os.environ, "VLLM_PLUGINS": "none"}, check=True)
    return pickle.loads(path.read_bytes())


def main(path: Path) -> None:
    answers = []
    for checkpoint, engine_args, asks in pickle.loads(path.read_bytes()):
        with in_process_engine(checkpoint, **engine_args) as engine:
            assert type(engine.model).__module__.startswith("vllm."), type(engine.model)
            answers.append(engine.tokens(*asks))
    path.write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
