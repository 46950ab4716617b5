from __future__ import annotations

import pytest

from benchmarks.limits import RequestCost
from benchmarks.model import SHAPE
from benchmarks.report import TIMED, compare, gain, render
from duet_server.plan import presets


def request(mode):
    return RequestCost(SHAPE, presets(SHAPE)[mode], num_text=64, num_output=8)


def measured(requests_per_second):
    """A pass whose latencies go as the inverse of its throughput."""
    return {name: requests_per_second if more else 1 / requests_per_second for name, _, more in TIMED}


STOCK = [
    {"pictures": measured(1.0), "text-light": measured(4.0)},
    {"pictures": measured(3.0), "text-light": measured(4.0)},
    {"pictures": measured(1.0), "text-light": measured(4.0)},
]
DUET = [{"light": measured(4.0)}, {"light": measured(6.0)}]


@pytest.fixture
def light():
    return compare(DUET, STOCK, "light", request("light"), request("off"))


def test_more_is_better_or_less_is():
    assert gain(6.0, 2.0, more_is_better=True) == 3.0
    assert gain(2.0, 6.0, more_is_better=False) == 3.0


def test_a_visit_is_compared_with_the_two_around_it(light):
    throughput = light["metrics"]["requests_per_second"]
    assert (throughput["stock"], throughput["duet"], throughput["text"]) == (2.0, 5.0, 4.0)
    assert (throughput["gain_least"], throughput["gain"], throughput["gain_most"]) == (2.0, 2.5, 3.0)


def test_gains_are_set_against_both_limits(light):
    throughput = light["metrics"]["requests_per_second"]
    limit = request("off").request_flops / request("light").request_flops
    assert light["flop_limit_request"] == limit
    assert throughput["of_flop_limit"] == pytest.approx(2.5 / limit)
    assert throughput["of_text"] == (4 / 4 + 6 / 4) / 2


def test_less_latency_is_a_gain(light):
    latency = light["metrics"]["ttft_p50_ms"]
    assert latency["stock"] == pytest.approx((1 + 1 / 3) / 2)
    assert latency["gain_least"] == pytest.approx((1 + 1 / 3) / 2 * 4)


def test_uncompressed_the_limit_is_stock_itself():
    off = compare([{"off": measured(2.0)}] * 2, STOCK, "off", request("off"), request("off"))
    throughput = off["metrics"]["requests_per_second"]
    assert throughput["of_flop_limit"] == throughput["gain"] == throughput["of_text"] == 1.0


def test_the_table_has_a_row_for_everything(light):
    light["capacity"] = {"fits": {"stock": 5, "duet": 10, "text": 12}, "observed": {"stock": 6, "duet": 9}}
    light["stages"] = {"stage1": 0.001, "stage2": 0.0145, "model": 0.426}
    lines = render({"modes": {"light": light}}).splitlines()
    rows = {line[2:30].strip(): line[30:].split() for line in lines if line.startswith("  ")}
    assert rows["requests/s"] == ["2", "5", "4", "2.50x", "(2.00-3.00)", "1.05", "1.25"]
    assert rows["requests that fit (blocks)"] == ["5", "10", "12", "2.00x", "0.83"]
    assert rows["most seen answering at once"] == ["6", "9", "1.50x"]
    assert "stage 1 0.10%, stage 2 1.45%, the whole prefill 42.6%" in lines[-1]
