from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.robustness.small_server import ServerProcesses

# A process that kills its child on command, but never waits for it, so that the child becomes a zombie.
SERVER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("started", flush=True)
sys.stdin.readline()
child.kill()
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
print("killed", flush=True)
sys.stdin.readline()
"""


def test_processes_of_a_server_and_those_that_end():
    command = [sys.executable, "-c", SERVER, "--port", "54321"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as server:
        server.stdout.readline()
        processes = ServerProcesses.of("http://127.0.0.1:54321")
        assert len(processes.titles) == 2
        assert processes.ended() == []
        assert all(size > 1 << 20 for size in processes.resident_bytes().values())
        server.stdin.write(b"\n")
        server.stdout.readline()
        (ended,) = processes.ended()
        assert "time.sleep" in ended
        assert len(processes.resident_bytes()) == 1
        server.stdin.write(b"\n")
        server.wait()
        assert len(processes.ended()) == 2


def test_a_server_that_was_not_started_here_is_not_found():
    with pytest.raises(ValueError, match="not enough values"):
        ServerProcesses.of("http://127.0.0.1:54322")
