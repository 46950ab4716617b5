"""The example that needs no server, with the demo model. Other examples are tested with running servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *argv: str) -> str:
    """The output of an example."""
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, str(EXAMPLES / name), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_offline():
    lines = [line for line in run_example("offline.py").splitlines() if line.endswith("]")]
    assert lines == [
        "off ['orange', 'red']",
        "balanced ['orange', 'red']",
        "{'visual_tokens': 32, 'guide': 'last'} ['orange', 'red']",
    ]
