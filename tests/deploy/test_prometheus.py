"""The example configuration and the alerts, by Prometheus's own tool."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.dashboard import DEPLOY
from tests.deploy.prometheus import program

RULES = DEPLOY / "prometheus" / "alerts.yml"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", DEPLOY / "prometheus" / "prometheus.yml"],  # which checks the rules that it names, too
        ["check", "rules", "--lint-fatal", RULES],
        ["test", "rules", Path(__file__).parent / "alerts_test.yml"],
    ],
    ids=["configuration", "rules", "alerts"],
)
def test_promtool(words):
    done = subprocess.run([program("promtool"), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
