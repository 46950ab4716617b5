"""A few requests per operation; ``python -m benchmarks.robustness.api_fuzz`` generates hundreds."""

from __future__ import annotations

from benchmarks.robustness.api_fuzz import fuzz, is_healthy
from benchmarks.robustness.small_server import ServerProcesses


def test_no_operation_fails(server):
    processes = ServerProcesses.of(server.base_url)
    answers, faults = fuzz(server.base_url, examples=6, seed=0, phases=["examples", "fuzzing"], limit_s=300)
    assert faults == []
    assert answers["POST /v1/chat/completions"][200]
    assert answers["POST /v1/chat/completions"][400]
    assert len(answers) >= 25  # vLLM's operations and ours
    assert processes.ended() == []
    assert is_healthy(server.base_url)
