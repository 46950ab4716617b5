"""The example configuration and the alerts, checked with Prometheus's own tool."""

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
        ["check", "config", DEPLOY / "prometheus" / "prometheus.yml"],  # also checks the rules that it names
        ["check", "rules", "--lint-fatal", RULES],
        ["test", "rules", Path(__file__).parent / "alerts_test.yml"],
    ],
    ids=["configuration", "rules", "alerts"],
)
def test_promtool_accepts_the_configuration_and_the_alerts(words):
    done = subprocess.run([program("promtool"), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
