"""Clients cannot set compression's reserved keys at any depth of a body, or ask for more answers than allowed."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace

import pytest
from starlette.testclient import TestClient
from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item
from vllm.multimodal.inputs import MultiModalKwargsItem

from duet_server.api.body_walk import walk
from duet_server.api.errors import RequestRefusedError
from duet_server.api.protection.guard import check_body, refuse_many_answers, refuse_reserved_keys
from tests.api.stand_in import QUESTION, image_part, picture_url, stand_in_server, user

XARGS = {"vllm_xargs": {"duet_keep": [1.0]}}
KWARGS = {"mm_processor_kwargs": {"duet_stage1": [3, 2, 0]}}
CHAT = {"messages": [QUESTION]}
TEXT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/batch": {"messages": [[QUESTION], [QUESTION]]},
    "/v1/chat/completions/render": CHAT,
    "/v1/completions": {"prompt": "Hello"},
    "/v1/completions/render": {"prompt": "Hello"},
    "/v1/compression/plan": CHAT,
    "/v1/compression/preview": CHAT,
    "/v1/messages": TEXT,
    "/v1/messages/count_tokens": TEXT,
    "/v1/messages/render": TEXT,
    "/v1/responses": {"input": "Hello"},
    "/v1/responses/render": {"input": "Hello"},
    "/v1/systemone": CHAT,
    "/generative_scoring": {"query": "Hello", "items": ["you"], "label_token_ids": [1, 2]},
    "/inference/v1/generate": {"token_ids": [1, 2, 3], "sampling_params": {}},
    "/invocations": CHAT,
    "/tokenize": CHAT,
}


@pytest.fixture(scope="module")
def everything(checkpoint):
    """A server with all routes of vLLM for a generative model."""
    flags = ("--served-model-name", "demo", "--enable-scale-out", "--max-num-batched-tokens", "2048")
    return asyncio.run(stand_in_server(checkpoint, *flags, "--trust-request-mm-kwargs"))


@pytest.fixture
def post(everything):
    everything.engine.calls.clear()
    client = TestClient(everything.app, raise_server_exceptions=False)
    return lambda path, body, **kwargs: client.post(path, json={"model": "demo", **body}, **kwargs)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("extra", [XARGS, KWARGS])
def test_reserved_keys_are_refused_on_every_route(path, extra, post, everything):
    answer = post(path, ROUTES[path] | extra)
    field = next(f"{name}.{key}" for name, keys in extra.items() for key in keys)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert not everything.engine.calls


def look_for_reserved_keys(body):
    for place, container in walk(body):
        if isinstance(container, dict):
            refuse_reserved_keys(place, container)


def test_every_json_route_is_in_the_list(everything):
    """The list has all routes with a body that can reach the engine."""
    harmless = {
        "/detokenize",
        "/inference/v1/abort_requests",
        "/is_scaling_elastic_ep",
        "/ping",
        "/scale_elastic_ep",
        "/v1/chat/completions/derender",
        "/v1/completions/derender",
        "/v1/responses/{response_id}/cancel",
    }
    posted = {route.path for route in everything.app.routes if "POST" in (getattr(route, "methods", None) or ())}
    assert posted == set(ROUTES) | harmless


@pytest.mark.parametrize(
    "body",
    [
        {"sampling_params": {"extra_args": {"duet_salient": [1]}}},
        {"requests": [{"messages": []}, {"vllm_xargs": {"duet_guide": "all"}}]},
        {"mm_processor_kwargs": {"images_kwargs": {"duet_stage1": [1, 1, 0]}}},
        {"mm_processor_kwargs": {"images_kwargs": [{"duet_trace": 1}]}},
        {"prompt": [{"multi_modal_data": {}, "mm_processor_kwargs": {"duet_stage1": []}}]},
    ],
)
def test_reserved_keys_are_refused_at_any_depth(body):
    with pytest.raises(RequestRefusedError, match="no key that begins with duet_"):
        look_for_reserved_keys(body)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "duet_",
        {"vllm_xargs": None, "mm_processor_kwargs": 3},
        {"vllm_xargs": {"session_id": "duet_1"}},
        {"duet_keep": 1},
        {"tools": [{"function": {"parameters": {"properties": {"duet_name": {}}}}}]},
        {"features": {"kwargs_data": {"image": [None, "?"]}}},
    ],
)
def test_bodies_that_set_no_reserved_key_are_accepted(body):
    look_for_reserved_keys(body)


def test_bodies_5000_levels_deep_are_checked():
    body = {"duet_keep": 1}
    for _ in range(5_000):
        body = {"a": [body]}
    look_for_reserved_keys({"tools": body})
    with pytest.raises(RequestRefusedError) as refused:
        look_for_reserved_keys({"vllm_xargs": body})
    assert refused.value.parameter.startswith("vllm_xargs.a[0].a[0].a[0].")


def test_of_a_duplicate_key_the_value_that_counts_is_checked(post, everything):
    client = TestClient(everything.app)
    text = json.dumps({"model": "demo", **TEXT})[:-1] + ', "vllm_xargs": {"duet_keep": [1]}, "vllm_xargs": %s}'
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/chat/completions", content=text % "{}", headers=headers).status_code == 200
    answer = client.post("/v1/chat/completions", content=text % '{"duet_keep": [2]}', headers=headers)
    assert answer.json()["error"]["param"] == "vllm_xargs.duet_keep"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_bodies_of_other_types_are_not_read(media_type, everything):
    client = TestClient(everything.app)
    everything.engine.calls.clear()
    content = json.dumps({"model": "demo", **TEXT, **XARGS})
    answer = client.post("/v1/chat/completions", content=content, headers={"Content-Type": media_type})
    assert answer.status_code == 400
    assert not everything.engine.calls


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_reserved_keys_are_refused_in_every_json_encoding(encoding, everything):
    client = TestClient(everything.app)
    content = json.dumps({"model": "demo", **TEXT, **XARGS}).encode(encoding)
    answer = client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["param"] == "vllm_xargs.duet_keep"


@pytest.mark.parametrize("field", ["kwargs_data", "mm_metadata"])
def test_reserved_keys_in_processed_images_are_refused(field, post, everything):
    hidden = base64.b64encode(b"\x81\xabduet_stage1\x93\x03\x02\x00").decode()
    features = {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": 0, "length": 1}]}}
    body = {"token_ids": [1], "sampling_params": {}, "features": {**features, field: {"image": [hidden]}}}
    answer = post("/inference/v1/generate", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"features.{field}"
    look_for_reserved_keys({"features": {field: {"image": [encode_mm_kwargs_item(MultiModalKwargsItem({}))]}}})


@pytest.mark.parametrize("field", ["n", "best_of", "sampling_params.n"])
@pytest.mark.parametrize("value", [33, 33.0, "33", "33.0", "1_000", pytest.param(10**400, id="huge")])
def test_more_answers_than_allowed_are_refused(field, value):
    body = {field: value} if "." not in field else {"sampling_params": {"n": value}}
    with pytest.raises(RequestRefusedError, match="expected at most 32") as refused:
        refuse_many_answers(body, 32)
    assert refused.value.parameter == field
    refuse_many_answers(body, None)


@pytest.mark.parametrize("body", [{}, {"n": None}, {"n": 32}, {"n": "many"}, {"n": []}, {"n": True}])
def test_as_many_answers_as_allowed_are_accepted(body):
    refuse_many_answers(body, 32)


def test_the_option_limits_the_number_of_answers(post):
    assert post("/v1/chat/completions", TEXT | {"n": 32}).status_code == 200
    answer = post("/v1/chat/completions", TEXT | {"n": 33})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


HALF = "\ud83d hi"
WITH_TEXT = {
    "/v1/chat/completions": ({"messages": [user(HALF)]}, "messages[0].content[0].text"),
    "/v1/chat/completions/batch": ({"messages": [[user("a")], [user(HALF)]]}, "messages[1][0].content[0].text"),
    "/v1/completions": ({"prompt": ["a", HALF]}, "prompt[1]"),
    "/v1/compression/plan": ({"messages": [user("a")], "user": HALF}, "user"),
    "/v1/messages": ({**TEXT, "system": HALF}, "system"),
    "/v1/responses": ({"input": HALF}, "input"),
    "/tokenize": ({"prompt": HALF}, "prompt"),
}


@pytest.mark.parametrize("path", WITH_TEXT)
def test_half_a_character_is_refused_by_name(path, everything):
    everything.engine.calls.clear()
    body, field = WITH_TEXT[path]
    content = json.dumps({"model": "demo", **body})  # as the client's library would: with \ud83d
    headers = {"Content-Type": "application/json"}
    error = TestClient(everything.app).post(path, content=content, headers=headers).json()["error"]
    assert error["param"] == field
    assert error["message"] == rf"{field} is '\ud83d hi', expected whole characters: \ud83d is half a surrogate pair."
    assert not everything.engine.calls


def test_a_whole_surrogate_pair_is_a_character(post):
    assert post("/v1/chat/completions", {"messages": [user("\U0001f600 hi")]}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("Compression", "light", "Compression"),
        ("COMPRESSION", "light", "COMPRESSION"),
        ("compresion", {"reduction": 0.5}, "compresion"),
        ("compressions", "light", "compressions"),
        ("extra_body", {"compression": "light"}, "extra_body.compression"),
        ("vllm_xargs", {"compression": "light"}, "vllm_xargs.compression"),
        ("mm_processor_kwargs", {"compression": "light"}, "mm_processor_kwargs.compression"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"])
def test_near_misses_of_the_field_are_refused(path, field, value, param, post, everything):
    error = post(path, ROUTES[path] | {field: value}).json()["error"]
    assert error["param"] == param
    assert "compression" in error["message"].partition("expected")[2]
    assert not everything.engine.calls


@pytest.mark.parametrize(
    "fields",
    [{"extra_body": {"a": 1}}, {"expression": "a"}, {"kv_compression": "a"}, {"extra_body": {"compression": None}}],
)
def test_other_unknown_fields_are_passed_over_as_in_vllm(fields, post):
    assert post("/v1/chat/completions", CHAT | fields).status_code == 200


PICTURE = {**image_part(), "uuid": "photo-7"}
RESPONSE_PICTURE = {"type": "input_image", "image_url": picture_url(), "uuid": "photo-7"}
MESSAGE_PICTURE = {"type": "image", "source": {"type": "url", "url": picture_url()}, "uuid": "photo-7"}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [MESSAGE_PICTURE]}
WITH_UUID = {
    "/v1/chat/completions": ({"messages": [user("a", PICTURE)]}, "messages[0].content[1].uuid"),
    "/v1/chat/completions/batch": ({"messages": [[user(PICTURE, "a")]]}, "messages[0][0].content[0].uuid"),
    "/v1/chat/completions/render": ({"messages": [user(PICTURE)]}, "messages[0].content[0].uuid"),
    "/v1/compression/plan": ({"messages": [user(PICTURE, "a")]}, "messages[0].content[0].uuid"),
    "/v1/compression/preview": ({"messages": [user(PICTURE, "a")]}, "messages[0].content[0].uuid"),
    "/v1/messages": (
        {"max_tokens": 1, "messages": [{"role": "user", "content": [TOOL_RESULT]}]},
        "messages[0].content[0].content[0].uuid",
    ),
    "/v1/messages/count_tokens": (
        {"messages": [{"role": "user", "content": [MESSAGE_PICTURE]}]},
        "messages[0].content[0].uuid",
    ),
    "/v1/responses": ({"input": [{"role": "user", "content": [RESPONSE_PICTURE]}]}, "input[0].content[0].uuid"),
    "/v1/responses/render": (
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [RESPONSE_PICTURE]}]},
        "input[0].output[0].uuid",
    ),
    "/invocations": ({"messages": [user(PICTURE, "a")]}, "messages[0].content[0].uuid"),
    "/tokenize": (
        {"messages": [user({"type": "image_url", "image_url": None, "uuid": "photo-7"})]},
        "messages[0].content[0].uuid",
    ),
    "/inference/v1/generate": (
        {"token_ids": [1], "sampling_params": {}, "features": {"mm_hashes": {"image": ["photo-7"]}}},
        "features.mm_hashes",
    ),
}


@pytest.mark.parametrize("path", WITH_UUID)
def test_a_clients_key_into_the_cache_of_pictures_is_refused(path, post, everything):
    body, field = WITH_UUID[path]
    error = post(path, body).json()["error"]
    assert error["param"] == field
    assert "--duet-trust-uuids" in error["message"]
    assert not everything.engine.calls


def test_clients_that_are_trusted_may_name_pictures(everything):
    check_body(
        {"messages": [user(PICTURE)]},
        "/v1/chat/completions",
        replace(everything.app.state.duet.options, trust_uuids=True),
    )
