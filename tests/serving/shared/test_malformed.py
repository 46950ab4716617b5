"""A few malformed pictures and fields of each kind; ``python -m benchmarks.robustness.malformed`` sends thousands."""

from __future__ import annotations

import asyncio

from benchmarks.robustness.malformed import (
    different_faults,
    healthy_answer,
    malformed_fields,
    malformed_pictures,
    send_all,
)
from benchmarks.robustness.small_server import ServerProcesses


def test_each_is_answered_and_the_engine_lives_on(server):
    processes, before = ServerProcesses.of(server.base_url), asyncio.run(healthy_answer(server.base_url))
    requests = malformed_pictures(54, seed=0) + malformed_fields(60, seed=0)
    answers = asyncio.run(send_all(server.base_url, requests, concurrency=8))
    assert different_faults(answers) == []
    assert {200, 400} <= {answer.status for answer in answers}
    assert processes.ended() == []
    assert asyncio.run(healthy_answer(server.base_url)) == before
