"""A few seconds of the soak; ``python -m benchmarks.robustness.soak`` runs it for minutes."""

from __future__ import annotations

import asyncio

from benchmarks.robustness.soak import soak


def test_mixed_clients_get_the_answers_of_one_that_is_alone(server):
    figures, failures = asyncio.run(soak(server.base_url, clients=16, minutes=0.1, num_requests=24, seed=1))
    assert failures == []
    assert figures["requests"] > 20
    assert figures["asked"].keys() == {"whole", "stream", "gone before the answer", "gone amid the answer"}
