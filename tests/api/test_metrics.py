from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.stand_in import image_part, user


def scrape(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name.startswith("duet_"))
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "model_name")): sample.value
        for sample in samples
        if sample.labels["model_name"] == "demo" and not sample.name.endswith("_created")
    }


@pytest.fixture
def counted(client):
    """How much the scraped counters have grown since the start of the test."""
    before = scrape(client)

    def gained():
        after = scrape(client)
        return {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key)}

    return gained


def test_series_are_there_before_any_request(client):
    names = {key[0] for key in scrape(client)}
    assert {
        "duet_visual_tokens_total",
        "duet_reduction_ratio_bucket",
        "duet_kv_token_layers_saved_total",
        "duet_rejected_requests_total",
        "duet_stage1_seconds_bucket",
        "duet_stage2_seconds_bucket",
    } <= names


def test_one_request_counts_once(chat, counted):
    usage = chat(compression="aggressive").json()["usage"]["compression"]
    cache = usage["kv_cache"]
    gained = {key: value for key, value in counted().items() if not key[0].endswith("_bucket")}
    assert gained == {
        ("duet_visual_tokens_total", "image", "encoder"): 576,
        ("duet_visual_tokens_total", "image", "stage1"): 102,
        ("duet_visual_tokens_total", "image", "llm"): 63.75,
        ("duet_requests_total", "aggressive"): 1,
        ("duet_reduction_ratio_count",): 1,
        ("duet_reduction_ratio_sum",): pytest.approx(0.8893),
        ("duet_kv_token_layers_saved_total",): cache["token_layers_uncompressed"] - cache["token_layers"],
    }


def test_a_cut_that_only_adds_the_class_token_saves_nothing(chat, counted):
    usage = chat(compression={"dominant": 577, "contextual": 0}).json()["usage"]["compression"]
    assert usage["visual_tokens"]["stage1"] == 577
    gained = counted()
    assert gained["duet_requests_total", "custom"] == 1
    assert ("duet_kv_token_layers_saved_total",) not in gained


def test_streams_count_too(chat, counted):
    chat(compression={"visual_tokens": 200}, stream=True)
    assert counted()["duet_requests_total", "custom"] == 1


def test_text_only_requests_move_no_visual_series(chat, counted):
    chat(user("Is it warm?"), compression="light")
    assert counted() == {("duet_requests_total", "light"): 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"compression": "nope"}, "invalid_settings"),
        ({"vllm_xargs": {"duet_keep": [1.0]}}, "reserved_key"),
        ({"messages": []}, "malformed"),
        ({"compression": "aggressive", "messages": [user(image_part(), "why? " * 600)]}, "too_long"),
        ({"compression": "aggressive", "echo": True}, "unsupported"),
    ],
)
def test_refusals_count_by_reason_and_nothing_else(chat, counted, fields, reason):
    assert chat(**fields).status_code == 400
    assert counted() == {("duet_rejected_requests_total", reason): 1}


def test_a_value_that_python_cannot_use_is_a_refusal_too(chat, counted, server, monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr(server.app.state.openai_serving_chat, "create_chat_completion", fail)
    assert chat().json()["error"]["message"] == (
        "body is malformed, expected values of the types that /openapi.json shows."
    )
    assert counted() == {("duet_rejected_requests_total", "malformed"): 1}


def test_a_plan_does_not_count_as_a_request(chat, counted):
    assert chat(path="/v1/compression/plan", compression="light").status_code == 200
    assert counted() == {}


def test_any_process_shows_what_all_have_counted(tmp_path):
    """Several API processes share a directory for their metrics, as vLLM's own metrics do."""
    count = "from duet_server.api.metrics import CompressionMetrics as M; M('m').count_request('light')"
    scrape = (
        "from vllm.v1.metrics.prometheus import get_prometheus_registry as r; "
        "from prometheus_client import generate_latest; print(generate_latest(r()).decode())"
    )
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", count], env=env, check=True, capture_output=True)
    output = subprocess.run(
        [sys.executable, "-c", f"{count}; {scrape}"], env=env, check=True, capture_output=True, text=True
    ).stdout
    assert 'duet_requests_total{model_name="m",preset="light"} 2.0' in output
