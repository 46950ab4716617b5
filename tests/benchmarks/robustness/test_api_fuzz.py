from __future__ import annotations

import json

from benchmarks.robustness.api_fuzz import read, render
from benchmarks.robustness.api_fuzz_hooks import LOOPBACK, MAX_FIELDS, few_fields, on_loopback


def line(operation: str, status: int, **more: str) -> str:
    return json.dumps({"operation": operation, "status": status, **more})


def test_a_fault_is_shown_once_with_its_shortest_request():
    failed = [line("POST /a", 500, answer="no", request=curl) for curl in ("curl -d 1234", "curl -d 1")]
    lost = line("GET /b", 0, answer="no answer", request="curl b")
    expected = line("POST /v1/systemone", 501, answer="not supported", request="curl c")
    answers, faults = read([line("POST /a", 200), line("POST /a", 422), *failed, lost, expected])
    assert answers["POST /a"] == {200: 1, 422: 1, 500: 2}
    assert faults == [
        "2 times POST /a: 500 no, such as curl -d 1",
        "1 times GET /b: 0 no answer, such as curl b",
    ]
    assert render(answers).splitlines()[1].split() == ["GET", "/b", "0", "0", "0", "1"]
    assert render(answers).splitlines()[-1].split() == ["all", "1", "1", "3", "1"]


def test_urls_are_replaced_by_a_loopback_url():
    body = {
        "messages": [{"content": [{"image_url": {"url": "HTTPS://example.org/x"}}, " http://[::1]/", "text http://x"]}]
    }
    assert on_loopback(body) == {
        "messages": [{"content": [{"image_url": {"url": LOOPBACK}}, LOOPBACK, "text http://x"]}]
    }
    assert on_loopback("data:image/png;base64,AAAA") == "data:image/png;base64,AAAA"


def test_half_of_the_bodies_become_valid_ones_with_few_fields():
    valid = {"messages": ["valid"]}
    bodies = [{"seed": number, **dict.fromkeys("abcdefgh", 1)} for number in range(100)]
    made = [few_fields(body, valid) for body in bodies]
    assert made == [few_fields(body, valid) for body in bodies]
    changed = [new for new, body in zip(made, bodies, strict=True) if new != body]
    assert 30 < len(changed) < 70
    assert all(new["messages"] == ["valid"] and len(new) == 1 + MAX_FIELDS for new in changed)
