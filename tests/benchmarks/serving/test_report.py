from __future__ import annotations

import pytest

from benchmarks.serving.report import BUSY, TIMED, compare, gain, render

LIMIT = 2.3


def measured(requests_per_second):
    """A pass whose latencies are inversely proportional to its throughput."""
    timed = {name: requests_per_second if more else 1 / requests_per_second for name, _, _, more in TIMED}
    return timed | dict.fromkeys(BUSY, 0.5)


STOCK = [
    {"pictures": measured(1.0), "text-light": measured(4.0)},
    {"pictures": measured(3.0), "text-light": measured(4.0)},
    {"pictures": measured(1.0), "text-light": measured(4.0)},
]
DUET = [{"light": measured(4.0)}, {"light": measured(6.0)}]


@pytest.fixture
def light():
    return compare(DUET, STOCK, "light", LIMIT)


def test_gain_follows_whether_more_is_better():
    assert gain(6.0, 2.0, more_is_better=True) == 3.0
    assert gain(2.0, 6.0, more_is_better=False) == 3.0


def test_a_visit_is_compared_with_the_two_around_it(light):
    throughput = light["requests_per_second"]
    assert (throughput["stock"], throughput["duet"], throughput["text"]) == (2.0, 5.0, 4.0)
    assert (throughput["gain_least"], throughput["gain"], throughput["gain_most"]) == (2.0, 2.5, 3.0)


@pytest.mark.parametrize(
    "unfinished", [[], [{}], [{"text-light": measured(9.0)}]], ids=["none", "empty", "no pictures"]
)
def test_without_a_last_visit_to_stock_the_one_before_is_enough(unfinished):
    throughput = compare(DUET[:1], STOCK[:1] + unfinished, "light", LIMIT)["requests_per_second"]
    assert (throughput["stock"], throughput["gain"]) == (1.0, 4.0)


def test_unmeasured_modes_are_not_compared():
    assert compare([], STOCK[:1], "light", LIMIT) is None
    assert compare([{"off": measured(2.0)}], STOCK, "light", LIMIT) is None
    assert compare([{"off": measured(2.0)}, *DUET[:1]], STOCK, "light", LIMIT)["requests_per_second"]["gain"] == 2.0


def test_gains_are_divided_by_both_limits(light):
    throughput = light["requests_per_second"]
    assert throughput["of_flop_limit"] == 2.5 / LIMIT
    assert throughput["of_text"] == (4 / 4 + 6 / 4) / 2


def test_less_latency_is_a_gain(light):
    latency = light["ttft_p50_ms"]
    assert latency["stock"] == pytest.approx((1 + 1 / 3) / 2)
    assert latency["gain_least"] == pytest.approx((1 + 1 / 3) / 2 * 4)


def test_uncompressed_the_limit_is_stock_itself():
    off = compare([{"off": measured(2.0)}] * 2, STOCK, "off", flop_limit=1.0)
    throughput = off["requests_per_second"]
    assert throughput["of_flop_limit"] == throughput["gain"] == throughput["of_text"] == 1.0


def rows(table):
    return {line[2:16].strip(): line[16:].split() for line in table.splitlines()}


def test_the_tables_have_a_place_for_everything(light):
    mode = {
        "visual_tokens_layer_average": 191.75,
        "flop_limit_request": LIMIT,
        "capacity": {"fits": {"stock": 5, "duet": 10, "text": 12}, "observed": {"stock": 6, "duet": 9}},
        "stages": {"stage1": 0.001, "stage2": 0.0145, "model": 0.426},
    }
    _, at_8, by_mode = render({"modes": {"light": mode}, "load": {8: {"light": light}, 9: {}}}).split("\n\n")
    assert rows(at_8)["stock"][:3] == ["2", "0.6667", "ms"]
    assert rows(at_8)["light"][:4] == ["5", "2.50x", "(2.00-3.00)", "3.33x"]
    assert rows(at_8)["light"][-5:] == ["1.09", "1.25", "0.50", "0.50", "0.50"]
    capacity = ["5", "10", "2.00x", "0.83", "6", "9", "1.50x"]
    assert rows(by_mode)["light"] == ["191.8", "1/2.30", *capacity, "0.10%", "1.45%", "42.60%"]


def test_the_table_of_modes_may_have_gaps():
    mode = {"visual_tokens_layer_average": 576.0, "flop_limit_request": 1.0}
    seen = mode | {"capacity": {"fits": {"stock": 5, "duet": 5, "text": 5}}}
    table = render({"modes": {"off": mode, "light": seen}, "load": {}}).split("\n\n")[-1]
    assert rows(table)["off"] == ["576.0", "1/1.00"]
    assert rows(table)["light"] == ["576.0", "1/1.00", "5", "5", "1.00x", "1.00"]
