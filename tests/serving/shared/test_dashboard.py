"""A running server has every series of the dashboard and the alerts, and Prometheus can compute their queries."""

from __future__ import annotations

import itertools
import re
import time
from itertools import chain

from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.pictures import data_url, encoded
from tests.deploy.dashboard import DEPLOY, dashboard, queries, series_names, substituted
from tests.deploy.prometheus import running_prometheus
from tests.serving.running_server import chat

VARIABLES = {"model_name": ".*", "interval": "1m", "__range": "5m"}
OWN = {"up"}  # Prometheus's own series for a target
WAIT_S = 60
SHADES = itertools.count()


def ask(server) -> None:
    """One request of each kind that the dashboard shows. The picture is new; otherwise the tower would not run."""
    picture = data_url(encoded(Image.new("RGB", (40, 40), (next(SHADES), 0, 0)), "PNG"))
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What color is it?"}]
    server.ask(content, compression="aggressive")
    server.ask("Hello?")
    assert server.client.post("/v1/chat/completions", json=chat(content, compression="strong")).status_code == 400


def alert_expressions() -> list[str]:
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    return re.findall(r"expr: (?:\|\n)?(.*?)\n\s+for:", text, re.DOTALL)


def test_every_series_is_on_metrics(server):
    ask(server)
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    live = {sample.name for family in families for sample in family.samples}
    expressions = [expr for _, expr in queries()] + alert_expressions()
    (model,) = (v["definition"] for v in dashboard()["templating"]["list"] if v["name"] == "model_name")
    read = set(chain.from_iterable(map(series_names, expressions))) | {re.match(r"label_values\((\w+),", model)[1]}
    assert len(alert_expressions()) == 5
    assert read - OWN <= live


def test_prometheus_answers_every_query(server, tmp_path):
    with running_prometheus(server.base_url.removeprefix("http://"), tmp_path) as prometheus:
        expressions = [substituted(expr, VARIABLES) for _, expr in queries()]
        deadline = time.monotonic() + WAIT_S
        while (missing := unanswered(prometheus, expressions)) and time.monotonic() < deadline:
            ask(server)
            time.sleep(1)
        assert not missing
        (target,) = prometheus.get("/targets").json()["data"]["activeTargets"]
        assert target["health"] == "up", target


def unanswered(prometheus, expressions: list[str]) -> list[str]:
    """The expressions without a value in Prometheus so far.

    Raises:
        AssertionError: if Prometheus cannot compute an expression.
    """
    return [expr for expr in expressions if not values(prometheus, expr)]


def values(prometheus, expression: str) -> list[float]:
    """Current values of an expression's series, without those that are not a number."""
    answer = prometheus.get("/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    found = [float(series["value"][1]) for series in answer.json()["data"]["result"]]
    return [value for value in found if value == value]
