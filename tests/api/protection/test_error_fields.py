"""Whatever a client gets wrong, the error names the field by its path in the body that was sent."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from starlette.testclient import TestClient

from tests.api.protection.test_guard import CHAT, ROUTES, TEXT, everything, post  # noqa: F401 - fixtures
from tests.api.stand_in import picture_url, user

WRONG = (5, "", [], {}, True, [5], {"a": 1}, [None], "/etc/passwd")
# Fields that vLLM takes any value of, or looks up and answers with 404.
LOOKED_UP = {"model", "previous_response_id"}
PICTURE = {"type": "image_url", "image_url": {"url": picture_url()}}
WORDS = {"type": "text", "text": "Hello"}

CHAT_ROUTES = [
    path
    for path, body in ROUTES.items()
    if isinstance(body.get("messages", [None])[0], dict) and not path.startswith(("/v1/messages", "/v1/systemone"))
]
BATCH = "/v1/chat/completions/batch"

# A part that is wrong, the path below it that is to blame, and how the error ends.
CHAT_PARTS = [
    ({"type": "text", "text": 5}, "text", "is 5, expected a string."),
    ({"type": "text", "text": ["a"]}, "text", "is ['a'], expected a string."),
    ({"type": "text"}, "text", "is missing, expected a string."),
    ({"type": "input_text", "text": {}}, "text", "is {}, expected a string."),
    ({"type": "image_url"}, "image_url", "is missing, expected an object with url."),
    ({"type": "image_url", "image_url": "x"}, "image_url", "is 'x', expected an object with url."),
    ({"type": "image_url", "image_url": {}}, "image_url.url", "is missing, expected a URL, or data:image/png;base64,"),
    (
        {"type": "image_url", "image_url": {"url": ""}},
        "image_url.url",
        "is '', expected a URL, or data:image/png;base64,",
    ),
    ({"type": "image_url", "image_url": {"url": None}}, "image_url.url", "is null, expected a URL, or "),
    ({"type": "image_url", "image_url": {"url": [1]}}, "image_url.url", "is [1], expected a URL, or "),
    (
        {"type": "image_url", "image_url": {"url": "/home/me/cat.png"}},
        "image_url.url",
        "is '/home/me/cat.png', expected an",
    ),
    (
        {"type": "image_url", "image_url": {"url": "ftp://a/b.png"}},
        "image_url.url",
        "is 'ftp://a/b.png', expected an http",
    ),
    (
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@"}},
        "image_url.url",
        "is base64 with @, expected",
    ),
    (
        {"type": "image_url", "image_url": {"url": picture_url(), "detail": "best"}},
        "image_url.detail",
        "is 'best', expected",
    ),
    ({"type": "video_url", "video_url": {}}, "video_url.url", "is missing, expected a URL"),
    ({"type": "nope"}, "type", "is 'nope', expected one of "),
    ({"type": ["text"]}, "type", "is ['text'], expected one of "),
    ({}, "type", "is missing, expected one of "),
    (5, "", "is 5, expected an object with a type."),
    (None, "", "is null, expected an object with a type."),
]
RESPONSES_PARTS = [
    ({"type": "input_text", "text": 5}, "text", "is 5, expected a string."),
    ({"type": "input_image"}, "image_url", "is missing, expected a URL, or"),
    ({"type": "input_image", "image_url": ""}, "image_url", "is '', expected a URL, or"),
    ({"type": "input_image", "image_url": "cat.png"}, "image_url", "is 'cat.png', expected an http or https URL"),
    ({"type": "nope"}, "type", "is 'nope', expected 'input_"),
]
MESSAGES_PARTS = [
    ({"type": "text", "text": 5}, "text", "is 5, expected a string."),
    ({"type": "image"}, "source", "is missing, expected an object with type and data, or type and url."),
    ({"type": "image", "source": {"type": "base64", "data": ""}}, "source.data", "is '', expected base64."),
    (
        {"type": "image", "source": {"type": "base64", "data": "x"}},
        "source.data",
        "is base64 of 1 characters, expected",
    ),
    ({"type": "image", "source": {"type": "url", "url": "cat.png"}}, "source.url", "is 'cat.png', expected an http or"),
]


def check(answer, path, ending):
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == path
    assert error["message"].startswith(f"{path} {ending}")


@pytest.mark.parametrize(("part", "below", "ending"), CHAT_PARTS, ids=str)
def test_parts_of_chats(post, everything, part, below, ending):  # noqa: F811
    content = [WORDS, PICTURE, part]
    for route in CHAT_ROUTES:
        body = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]}
        check(post(route, body), f"messages[1].content[2].{below}".rstrip("."), ending)
    body = {"messages": [[user("Hello")], [{"role": "user", "content": content}]]}
    check(post(BATCH, body), f"messages[1][0].content[2].{below}".rstrip("."), ending)
    assert not everything.engine.calls


@pytest.mark.parametrize(("part", "below", "ending"), RESPONSES_PARTS, ids=str)
def test_parts_of_responses(post, everything, part, below, ending):  # noqa: F811
    content = [{"type": "input_text", "text": "Hello"}, part]
    body = {"input": [{"role": "user", "content": "Hi"}, {"role": "user", "content": content}]}
    for route in ("/v1/responses", "/v1/responses/render"):
        check(post(route, body), f"input[1].content[1].{below}", ending)
    assert not everything.engine.calls


@pytest.mark.parametrize(("part", "below", "ending"), MESSAGES_PARTS, ids=str)
def test_parts_of_messages(post, everything, part, below, ending):  # noqa: F811
    result = {"type": "tool_result", "tool_use_id": "1", "content": [part]}
    for route in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/render"):
        body = {"max_tokens": 4, "messages": [{"role": "user", "content": [WORDS, part]}]}
        check(answer := post(route, body), f"messages[0].content[1].{below}", ending)
        assert answer.json()["type"] == "error"
        body = {"max_tokens": 4, "messages": [{"role": "user", "content": [WORDS, result]}]}
        check(post(route, body), f"messages[0].content[1].content[0].{below}", ending)
    assert not everything.engine.calls


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HISTORY = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "found"},
]


def changed(call, path, value):
    *above, last = path
    inner = call = json.loads(json.dumps(call))
    for key in above:
        inner = inner[key]
    inner[last] = value
    return call


@pytest.mark.parametrize(
    "path", [("id",), ("type",), ("function", "name"), ("function", "arguments")], ids=lambda path: path[-1]
)
@pytest.mark.parametrize("value", [5, {"a": 1}, None], ids=str)
def test_calls_of_tools(post, path, value):  # noqa: F811
    assert post("/v1/chat/completions", {"messages": HISTORY}).status_code == 200
    history = [HISTORY[0], {**HISTORY[1], "tool_calls": [changed(CALL, path, value)]}, HISTORY[2]]
    check(post("/v1/chat/completions", {"messages": history}), f"messages[1].tool_calls[0].{'.'.join(path)}", "is ")


def test_the_branch_of_a_message_is_that_of_its_role(post):  # noqa: F811
    history = [*HISTORY[:2], {**HISTORY[2], "tool_call_id": 5}]
    check(post("/v1/chat/completions", {"messages": history}), "messages[2].tool_call_id", "is 5, expected a string.")
    body = {"messages": HISTORY, "add_generation_prompt": "x"}
    check(post("/tokenize", body), "add_generation_prompt", "is 'x', expected")


@pytest.mark.parametrize("user_", ["g", "/cat.jpg", "http://127.0.0.1/cat.jpg"])
def test_only_the_source_of_a_picture_is_blamed_for_it(post, user_):  # noqa: F811
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/cat.jpg"}}
    body = {"user": user_, "messages": [user("http://127.0.0.1/cat.jpg", picture)]}
    check(post("/v1/chat/completions", body), "messages[0].content[1].image_url.url", "is 'http://127.0.0.1/cat.jpg'")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_error_in_a_stream_is_spelled_alike(post, path):  # noqa: F811
    answer = post(path, {**ROUTES[path], "stream": True, "logit_bias": {"999999": 1}})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    error = json.loads(events[-1])["error"]
    assert error["param"] == "logit_bias"
    assert "(parameter=" not in error["message"]


@pytest.mark.parametrize("where", ["name", "extra"])
def test_a_body_too_deep_for_vllm_is_no_failure_of_the_server(post, where):  # noqa: F811
    deep = []
    for _ in range(900):
        deep = [deep]
    answer = post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi", where: deep}]})
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", BATCH, "/v1/completions", "/v1/responses", "/v1/messages"])
def test_no_wrong_value_of_any_field_is_a_failure_of_the_server(post, everything, path):  # noqa: F811
    body = everything.app.openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = everything.app.openapi()["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]["properties"]
    statuses = Counter()
    for field in set(fields) - LOOKED_UP:
        for value in WRONG:
            answer = post(path, {**ROUTES[path], field: value})
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 400), (field, value, answer.text)
            if answer.status_code == 400:
                error = answer.json()["error"]
                assert "has no attribute" not in error["message"], (field, value, error)
                assert "not iterable" not in error["message"], (field, value, error)
    assert statuses[400] > len(fields), "many values of each field are wrong"


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 9_999}, "max_tokens", "max_tokens=9999 cannot be greater"),
        (
            "/v1/chat/completions",
            {**CHAT, "max_completion_tokens": 9_999},
            "max_completion_tokens",
            "max_completion_tokens",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "max_completion_tokens": 0},
            "max_completion_tokens",
            "max_completion_tokens must",
        ),
        (
            "/v1/responses",
            {"input": "a", "max_output_tokens": 9_999},
            "max_output_tokens",
            "max_output_tokens=9999 cannot",
        ),
        (
            "/v1/responses",
            {"input": "a", "previous_response_id": 5},
            "previous_response_id",
            "previous_response_id is 5,",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "temperature": "warm"},
            "temperature",
            "temperature is 'warm', expected a number.",
        ),
        ("/v1/chat/completions", {**CHAT, "stop": 5}, "stop", "stop is 5, expected a string or a list."),
        (
            "/v1/chat/completions",
            {**CHAT, "structured_outputs": 5},
            "structured_outputs",
            "structured_outputs is 5, expected",
        ),
        ("/v1/chat/completions", {**CHAT, "structured_outputs": {}}, "structured_outputs", "You must use one kind of"),
        (
            BATCH,
            {"messages": [[user("a")]], "response_format": {}},
            "response_format.type",
            "response_format.type is missing",
        ),
        (
            "/v1/chat/completions",
            {"messages": []},
            "messages",
            "messages is [], expected a list of at least one message.",
        ),
        (
            "/v1/chat/completions",
            {"messages": {"role": "user"}},
            "messages",
            "messages is {'role': 'user'}, expected a list",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": {}}]},
            "messages[0].content",
            "messages[0].content",
        ),
        ("/v1/chat/completions", {}, "messages", "messages is missing, expected a value."),
        ("/v1/responses", {"input": []}, "input", "input is [], expected a string, or a list with at least one item."),
        (
            "/v1/completions",
            {"prompt": []},
            "prompt",
            "prompt is [], expected a string, or a list with at least one item.",
        ),
        ("/v1/completions", {"prompt": [5, "a"]}, "prompt[1]", "prompt[1] is 'a', expected a whole number."),
        ("/v1/messages", {**TEXT, "max_tokens": None}, "max_tokens", "max_tokens is null, expected a whole number."),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_limits_and_types_are_named_as_the_client_wrote_them(post, path, body, param, says):  # noqa: F811
    error = post(path, body).json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(says)
    assert error["type"] == "BadRequestError"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
def test_a_full_context_has_the_words_and_the_code_that_clients_act_on(post, path):  # noqa: F811
    long = "why? " * 6_000
    field = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
    body = {field: [user(long)] if field == "messages" else long, "max_tokens": 4}
    error = post(path, body).json()["error"]
    assert "This model's maximum context length is 4096 tokens. However, your prompt contains" in error["message"]
    assert error.get("code") == "context_length_exceeded" or path == "/v1/messages"
    assert error.get("param") == field or path == "/v1/messages"


@pytest.mark.parametrize("content", ["{", "[]", "5", '"x"', '{"messages": [}'])
def test_bodies_that_are_no_object(everything, content):  # noqa: F811
    headers = {"Content-Type": "application/json"}
    answer = TestClient(everything.app).post("/v1/chat/completions", content=content, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == "body"
    assert error["message"].startswith("body is ")
