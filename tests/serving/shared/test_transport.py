"""Each kind of packets twice; ``python -m benchmarks.robustness.transport`` opens hundreds of connections."""

from __future__ import annotations

import asyncio

from benchmarks.robustness.transport import KINDS, Speaker, converse_all


def test_each_request_is_answered_once_and_by_its_own_answer(server):
    conversations = Speaker(seed=0).conversations(2 * len(KINDS))
    faults = asyncio.run(converse_all(server.base_url, conversations, concurrency=8))
    assert [(item.kind, fault) for item, fault in zip(conversations, faults, strict=True) if fault] == []
