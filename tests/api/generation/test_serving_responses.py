from __future__ import annotations

import json

import pytest

from duet_server.api.generation.schema import DuetResponsesRequest
from tests.api.generation.test_chat import engine_keys, refusal
from tests.api.stand_in import ANSWER, picture_url

SHAPES = {"aggressive": [102, 51, 0], "off": [576, 576, 576]}


def turn(color="red", text="What color is the circle?"):
    image = {"type": "input_image", "image_url": picture_url(color=color)}
    return {"role": "user", "content": [image, {"type": "input_text", "text": text}]}


@pytest.fixture
def respond(client):
    def send(*turns, **fields):
        return client.post("/v1/responses", json={"model": "demo", "input": list(turns) or [turn()], **fields})

    return send


@pytest.mark.parametrize("setting", SHAPES)
def test_compression_equals_that_of_chat_completions(respond, chat, server, setting):
    response = respond(compression=setting)
    assert response.status_code == 200, response.text
    by_response = server.last_call
    usage = response.json()["usage"]
    compression = chat(compression=setting).json()["usage"]["compression"]
    assert usage["compression"]["visual_tokens"]["segments"] == SHAPES[setting]
    assert usage["compression"]["settings"] == compression["settings"]
    assert usage["compression"]["reduction"] == compression["reduction"]
    # vLLM begins this route's prompts with one more token
    shifted = [row - 1 for row in engine_keys(by_response).get("duet_salient", [])]
    assert shifted == engine_keys(server.last_call).get("duet_salient", [])
    assert by_response.prompt["mm_hashes"] == server.last_call.prompt["mm_hashes"]


def test_a_stream_reports_compression_in_its_last_event(respond):
    events = [
        json.loads(line.removeprefix("data: "))
        for line in respond(compression="aggressive", stream=True).text.splitlines()
        if line.startswith("data: ")
    ]
    assert [event["type"] for event in events if (event.get("response") or {}).get("usage")] == ["response.completed"]
    assert events[-1]["response"]["usage"] == respond(compression="aggressive").json()["usage"]


def test_a_stored_response_and_the_next_turn(respond, client, server, monkeypatch):
    monkeypatch.setattr(server.app.state.openai_serving_responses, "enable_store", True)
    first = respond(compression="aggressive").json()
    assert client.get(f"/v1/responses/{first['id']}").json() == first
    second = respond(turn("blue", "And here?"), compression="aggressive", previous_response_id=first["id"]).json()
    assert ANSWER in server.last_call.prompt["prompt"]
    assert second["usage"]["compression"]["visual_tokens"]["segments"] == [204, 102, 0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"compression": "nope"}, "compression"),
        ({"compression": {"keep": [0.5]}}, "compression.keep"),
        ({"compression": "light", "input": [turn(text="why? " * 600)]}, "input"),
        ({"mm_processor_kwargs": {"do_resize": False}}, "mm_processor_kwargs"),
    ],
    ids=str,
)
def test_unsupported_requests_are_refused(respond, server, fields, param):
    assert refusal(respond(**fields))[0] == param
    assert server.engine.calls == []


MESSAGE = {"type": "message", "role": "assistant", "id": "", "status": "completed"}


@pytest.mark.parametrize(
    "item",
    [
        {**MESSAGE, "content": []},
        {**MESSAGE, "content": [{"type": "refusal", "refusal": ""}]},
        {
            "type": "function_call_output",
            "call_id": None,
            "status": "completed",
            "output": [{"type": "input_file", "file_id": None}],
            **dict.fromkeys(("caller", "created_by", "name", "namespace")),
            "id": "",
        },
    ],
    ids=str,
)
def test_items_without_their_content_are_refused(respond, server, item):
    assert refusal(respond(input=[item, turn()]))[0] == "input"
    assert server.engine.calls == []


def test_a_length_is_an_upper_bound(respond, server):
    usage = respond(turn(), compression="aggressive", max_output_tokens=4_096).json()["usage"]
    assert server.last_call.params.max_tokens == 4096 - usage["input_tokens"]


TOOLS = [{"type": "web_search_preview"}]


def test_a_built_in_tool_is_refused_with_stage_2_on(respond, server, monkeypatch):
    monkeypatch.setenv("VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT", "1")
    error = respond(turn(), tools=TOOLS, compression="aggressive").json()["error"]
    assert error["param"] == "tools[0].type"
    assert error["message"] == "tools[0].type is 'web_search_preview', expected function with stage 2 on."
    assert server.engine.calls == []


def test_vllm_runs_no_built_in_tool_by_default(respond):
    assert respond(turn(), tools=TOOLS, compression="aggressive").status_code == 200


def test_a_copy_of_a_request_has_a_state_of_its_own():
    """vLLM copies the request for each turn of a built-in tool; usage is that of the first turn."""
    request = DuetResponsesRequest(input="hi")
    request.duet.trace_id = 3
    copied = request.model_copy(update={"input": "more"})
    assert copied.duet == request.duet
    copied.duet.trace_id = 7
    assert request.duet.trace_id == 3
