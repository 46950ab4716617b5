"""The dashboard's structure; tests/serving/shared/test_dashboard.py tests it on a running server."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest

from tests.deploy.dashboard import dashboard, panels, queries, series_names

COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TOPICS = {
    "traffic": "duet_requests_total",
    "time to first token": "vllm:time_to_first_token_seconds_bucket",
    "reduction": "duet_reduction_ratio_bucket",
    "visual tokens by stage": "duet_visual_tokens_total",
    "KV saved": "duet_kv_token_layers_saved_total",
    "rejects": "duet_rejected_requests_total",
    "stage 1": "duet_stage1_seconds_bucket",
    "stage 2": "duet_stage2_seconds_bucket",
}


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_shown(topic):
    assert TOPICS[topic] in set(chain.from_iterable(series_names(expr) for _, expr in queries()))


def test_panels_fill_the_grid_without_overlapping():
    cells: Counter[tuple[int, int]] = Counter()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        cells.update((x, y) for x in _span(place, "x", "w") for y in _span(place, "y", "h"))
    assert set(cells.values()) == {1}
    assert len(cells) == COLUMNS * (1 + max(y for _, y in cells))


def _span(place, start, length):
    return range(place[start], place[start] + place[length])


def test_ids_are_unique():
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel):
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])
    assert panel["type"] != "timeseries" or panel["options"]["legend"]["showLegend"]


def test_the_data_source_is_the_readers_choice():
    sources = [panel["datasource"] for panel in panels()]
    sources += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert all(source == DATASOURCE for source in sources)
    assert dashboard()["templating"]["list"][0]["type"] == "datasource"
    assert dashboard()["schemaVersion"] == 42  # the last one of Grafana's first dashboard API


def test_queries_use_the_variables():
    names = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert names == {"datasource", "model_name", "interval"}
    for title, expr in queries():
        assert 'model_name=~"$model_name"' in expr or series_names(expr) == {"http_requests_total"}, title
        assert "rate(" not in expr or "[$interval]" in expr, title


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (le) (rate(a_bucket{b="c", d=~"e|f"}[5m]))', {"a_bucket"}),
        ("histogram_quantile(0.95, sum by (le) (rate(vllm:x_bucket[$interval]))) > 1e3", {"vllm:x_bucket"}),
        ("sum(rate(a[1m])) / (sum(rate(a[1m])) + sum without (x) (b)) and on (y) c offset 5m", {"a", "b", "c"}),
        ('d{text="{e} \\" f"} unless g', {"d", "g"}),
    ],
)
def test_names_of_series_in_promql(expression, names):
    assert series_names(expression) == names
