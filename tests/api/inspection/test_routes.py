from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from duet_server.api.generation.schema import Compression
from duet_server.api.inspection.schema import CompressionInfo, CompressionPlan
from duet_server.demo import DEMO_NOTICE
from duet_server.plan import SettingsError, kv_bytes, prefill_flops
from duet_server.plan.resolve import KEYS, OLD_GUIDE_KEY
from tests.api.stand_in import image_part, stand_in_server, user


def test_info_lists_what_the_model_can_serve(client):
    info = client.get("/v1/compression").json()
    CompressionInfo.model_validate(info)
    assert info["model"] == "demo"
    assert info["boundaries"] == [4, 6]
    assert info["visual_tokens_per_image"] == 576
    assert info["default"] == "off"
    assert info["limits"] == {"max_reduction": 0.97, "max_num_batched_tokens": 2048}
    assert list(info["presets"]) == ["off", "light", "balanced", "aggressive", "visionzip"]
    assert info["presets"]["aggressive"] == {
        "dominant": 72,
        "contextual": 30,
        "cluster_width": 4,
        "keep": [0.5, 0.0],
        "guide": "salient",
        "visual_tokens": 102,
        "segments": [102, 51, 0],
        "layer_average": 63.75,
        "reduction": 0.8893,
    }


def test_info_says_that_the_demo_model_is_noise(client):
    assert client.get("/v1/compression").json()["notice"] == DEMO_NOTICE


def test_every_listed_preset_is_served(client, chat):
    for name, preset in client.get("/v1/compression").json()["presets"].items():
        usage = chat(compression=name).json()["usage"]["compression"]
        assert usage["visual_tokens"]["segments"] == preset["segments"]
        assert usage["reduction"] == preset["reduction"]


def test_plan_equals_the_usage_that_the_request_reports(chat):
    messages = user(image_part("red"), "one", image_part("blue"), "two?")
    plan = chat(messages, path="/v1/compression/plan", compression="balanced").json()
    CompressionPlan.model_validate(plan)
    response = chat(messages, compression="balanced").json()
    assert plan["compression"] == response["usage"]["compression"]
    assert plan["prompt_tokens"]["compressed"] == response["usage"]["prompt_tokens"]
    assert plan["images"] == 2


def test_plan_compares_with_uncompressed(chat, server):
    plan = chat(path="/v1/compression/plan", compression="aggressive").json()
    off = chat().json()["usage"]
    num_prompt = off["prompt_tokens"]
    assert plan["prompt_tokens"] == {"compressed": num_prompt - 474, "uncompressed": num_prompt}
    segments = [num_prompt - 474, num_prompt - 525, num_prompt - 576]
    assert plan["segments"] == [
        {"layers": [0, 4], "tokens": segments[0], "visual_tokens": 102},
        {"layers": [4, 6], "tokens": segments[1], "visual_tokens": 51},
        {"layers": [6, 8], "tokens": segments[2], "visual_tokens": 0},
    ]
    shape = server.app.state.duet.served.shape
    float32_bytes = 4
    assert plan["kv_cache_bytes"] == {
        "compressed": kv_bytes(shape, 4 * segments[0] + 2 * segments[1] + 2 * segments[2], float32_bytes),
        "uncompressed": kv_bytes(shape, 8 * num_prompt, float32_bytes),
    }
    assert plan["prefill_flops"] == {
        "compressed": prefill_flops(shape, segments, [576], 102),
        "uncompressed": prefill_flops(shape, [num_prompt] * 3, [576], 576),
    }


def test_plan_sends_nothing_to_the_engine_and_leaves_its_cache_alone(chat, server):
    question = user(image_part("yellow"), "What?")
    assert chat(question, path="/v1/compression/plan", compression="light").status_code == 200
    assert server.engine.calls == []
    chat(question, compression="light")
    assert server.last_call.prompt["mm_kwargs"]["image"][0] is not None


def test_plan_of_text_only_saves_nothing(chat):
    plan = chat(user("Is it warm?"), path="/v1/compression/plan", compression="aggressive").json()
    assert plan["images"] == 0
    assert plan["kv_cache_bytes"]["compressed"] == plan["kv_cache_bytes"]["uncompressed"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"compression": "nope"}, 400, "compression"),
        ({"compression": "aggressive", "messages": [user(image_part(), "why? " * 600)]}, 400, "messages"),
        ({"vllm_xargs": {"duet_keep": [1.0]}}, 400, "vllm_xargs.duet_keep"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_plan_refuses_the_same_requests_as_chat_completions(chat, fields, status, param):
    response = chat(path="/v1/compression/plan", **fields)
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == param


def test_openapi_documents_the_field_and_the_usage(client):
    openapi = client.get("/openapi.json").json()
    body = openapi["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schemas = openapi["components"]["schemas"]
    request = schemas[body["$ref"].rsplit("/", 1)[1]]
    assert {"$ref": "#/components/schemas/Compression"} in request["properties"]["compression"]["anyOf"]
    assert schemas["Compression"]["additionalProperties"] is False
    assert "compression" in schemas["DuetUsageInfo"]["properties"]
    assert "/v1/compression/plan" in openapi["paths"]
    assert "/v1/completions" in openapi["paths"]


def test_the_documented_field_has_the_keys_that_are_understood():
    assert set(Compression.model_fields) == {*KEYS, OLD_GUIDE_KEY}


@pytest.fixture(scope="module")
def other_server(checkpoint):
    """A server with another default, another limit and another boundary."""
    flags = ("--duet-default", '{"reduction": 0.5}', "--duet-max-reduction", "0.7", "--duet-boundaries", "2")
    return asyncio.run(stand_in_server(checkpoint, "--served-model-name", "other", *flags))


def test_flags_set_default_limit_and_boundaries(other_server):
    client = TestClient(other_server.app)
    info = client.get("/v1/compression").json()
    assert info["boundaries"] == [2]
    assert info["default"] == {"reduction": 0.5}
    assert info["limits"]["max_reduction"] == 0.7
    assert "fastv" in info["presets"]
    assert "aggressive" not in info["presets"]
    body = {"model": "other", "messages": [user(image_part(), "What?")]}
    usage = client.post("/v1/chat/completions", json=body).json()["usage"]["compression"]
    assert usage["reduction"] == pytest.approx(0.5, abs=1 / 576)
    response = client.post("/v1/chat/completions", json={**body, "compression": "off"})
    assert response.json()["usage"]["compression"]["reduction"] == 0.0
    response = client.post("/v1/chat/completions", json={**body, "compression": {"reduction": 0.8}})
    assert response.json()["error"]["param"] == "compression.reduction"
    assert "to 0.7" in response.json()["error"]["message"]


def test_a_default_that_cannot_be_served_stops_the_start(checkpoint):
    with pytest.raises(SettingsError, match=r"^--duet-default is 'pyramiddrop', expected one of off, "):
        asyncio.run(stand_in_server(checkpoint, "--duet-default", "pyramiddrop"))
