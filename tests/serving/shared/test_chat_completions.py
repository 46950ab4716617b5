"""Chat completions, their usage, their metrics, and refused requests."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.robustness.small_server import MODEL
from duet_server.demo import DEMO_NOTICE
from tests.golden_cases import golden_cases
from tests.serving.running_server import chat, picture_and_text

PICTURE = golden_cases("llava_mha")[0].picture_path
QUESTION = picture_and_text(PICTURE, "What color is the circle?")


def metric(server, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def test_openai_client(client, server):
    messages = [{"role": "user", "content": QUESTION}]
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=messages, max_tokens=8, extra_body={"compression": "aggressive"}
    )
    usage = answer.usage.model_extra["compression"]
    assert usage["visual_tokens"] == {"encoder": 576, "stage1": 102, "segments": [102, 51, 0], "layer_average": 63.75}
    assert usage["reduction"] == 0.8893
    num_text = answer.usage.prompt_tokens - 102
    assert usage["kv_cache"]["token_layers"] == (102 + num_text) * 4 + (51 + num_text) * 2 + num_text * 2

    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"compression": {"visual_tokens": 64}},
    )
    last = list(stream)[-1]
    assert last.usage.model_extra["compression"]["visual_tokens"]["segments"] == [102, 51, 0]


def test_default_from_the_environment(client):
    messages = [{"role": "user", "content": QUESTION}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
    assert answer.usage.model_extra["compression"]["settings"]["preset"] == "light"


def test_one_scrape_shows_one_requests_metrics(server):
    """One scrape after one request shows the API's counters and those that the engine records in its own process."""
    names = ["duet_kv_token_layers_saved_total", "duet_requests_total", "duet_reduction_ratio_count"]
    names += ["duet_stage1_seconds_count", "duet_stage2_seconds_count"]
    before = {name: metric(server, name) for name in names}
    settings = {"dominant": 41, "contextual": 3, "keep": [0.5, 0.0]}  # of no other test: stage 1 has no cached answer
    saved = server.ask(QUESTION, compression=settings)["usage"]["compression"]["kv_cache"]
    gained = [metric(server, name) - value for name, value in before.items()]
    assert gained == [saved["token_layers_uncompressed"] - saved["token_layers"], 1, 1, 1, 1]
    seconds = {f"stage{idx}": metric(server, f"duet_stage{idx}_seconds_sum") for idx in (1, 2)}
    assert all(0 < seconds[stage] < 60 for stage in seconds), seconds
    assert metric(server, "duet_requests_total", preset="custom", model_name=MODEL) >= 1
    assert metric(server, "vllm:request_success_total") > 0


def test_routes_say_what_is_served(server):
    about = server.client.get("/v1/compression").json()
    assert about["boundaries"] == [4, 6]
    assert about["notice"] == DEMO_NOTICE
    assert about["presets"]["aggressive"]["segments"] == [102, 51, 0]
    plan = server.client.post("/v1/compression/plan", json=chat(QUESTION, compression="aggressive")).json()
    served = server.ask(QUESTION, compression="aggressive")["usage"]["compression"]
    assert plan["compression"] == served
    schema = server.client.get("/openapi.json").json()["components"]["schemas"]["DuetChatCompletionRequest"]
    assert "compression" in schema["properties"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"compression": "strong"}, "compression"),
        ({"compression": {"reduction": 0.5, "visual_tokens": 9}}, "compression"),
        ({"compression": {"reduction": 0.99}}, "compression.reduction"),
        ({"compression": {"dominant": 600, "contextual": 3}}, "compression.dominant"),
        ({"compression": {"keep": [0.2, 0.5]}}, "compression.keep"),
        ({"compression": {"keep": [0.5]}}, "compression.keep"),
        ({"compression": {"keeps": [0.5, 0.5]}}, "compression.keeps"),
        ({"compression": 7}, "compression"),
        ({"compression": "light", "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"vllm_xargs": {"duet_keep": [0.5, 0.0]}}, "vllm_xargs.duet_keep"),
        ({"mm_processor_kwargs": {"duet_stage1": [1, 0, 0]}}, "mm_processor_kwargs.duet_stage1"),
    ],
    ids=str,
)
def test_bad_input_is_a_400_that_names_the_field(server, fields, param):
    response = server.client.post("/v1/chat/completions", json=chat(QUESTION, **fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert "expected" in error["message"]
    assert server.ask(QUESTION, compression="aggressive")["usage"]["completion_tokens"] == 12
