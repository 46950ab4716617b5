"""Plans by request id."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from duet_server.engine.request_plans import RequestPlans
from duet_server.engine.vllm_internals import PlaceholderRange
from duet_server.plan import RequestPlan, SettingsError, VisualRows
from duet_server.plan.wire import decode_plan
from tests.held_counts import dropping_args

# Prompt of 20 rows: text 0-1, two images of 4 side by side 2-9, text 10-12, an image of 5 13-17, text 18-19.
SPANS = [(13, 18), (2, 6), (6, 10)]
KEEP = [0.5, 0.2]


def expected_plan() -> RequestPlan | None:
    return decode_plan(dropping_args(20, SPANS, KEEP), 20, VisualRows(SPANS, []), 2)


# The part of vLLM's objects that plans read.
IMAGES = [SimpleNamespace(mm_position=PlaceholderRange(start, end - start)) for start, end in SPANS]


def sampling(**extra_args: object) -> SimpleNamespace:
    return SimpleNamespace(extra_args=extra_args or None)


def test_requests_are_added_and_removed():
    plans = RequestPlans(num_boundaries=2)
    plans.add("drops", 20, IMAGES, sampling(**dropping_args(20, SPANS, KEEP)))
    plans.add("keeps", 20, IMAGES, sampling(**dropping_args(20, SPANS, [1.0, 1.0])))
    plans.add("off", 20, IMAGES, sampling())
    plans.add("pooling", 20, IMAGES, None)

    assert plans.get("drops") == expected_plan()
    assert all(request in plans and plans.get(request) is None for request in ("keeps", "off", "pooling"))
    assert [plans.dropped("drops", segment_idx) for segment_idx in range(3)] == [0, 7, 11]
    assert [plans.dropped(request, 2) for request in ("keeps", "off", "never added")] == [0, 0, 0]

    for request in ("drops", "drops", "never added"):
        plans.remove(request)
    assert "drops" not in plans
    assert plans.get("drops") is None
    assert plans.dropped("drops", 2) == 0
    assert "keeps" in plans


def test_a_refused_request_is_not_remembered():
    plans = RequestPlans(num_boundaries=2)
    with pytest.raises(SettingsError):
        plans.add("refused", 20, IMAGES, sampling(**dropping_args(20, SPANS, [0.5])))

    assert "refused" not in plans
