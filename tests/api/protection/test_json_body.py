from __future__ import annotations

import codecs
import json

import pytest

from tests.api.generation.test_chat import refusal

BODY = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}).encode()
PATHS = ["/v1/chat/completions", "/tokenize", "/invocations", "/v1/messages", "/v1/compression/plan"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", [None, "text/json", "text/plain; charset=utf-8", "application/vnd.api+json"])
def test_other_content_types_are_told_the_one_that_works(path, given, client):
    answer = client.post(path, content=BODY, headers={"Content-Type": given} if given else {})
    value = repr(given) if given else "missing"
    assert refusal(answer) == ("Content-Type", f"Content-Type is {value}, expected application/json.")


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_body_is_called_empty(path, client):
    answer = client.post(path, headers={"Content-Type": "application/json"})
    assert refusal(answer) == ("body", "body is empty, expected a JSON object.")


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json; charset=utf-16"]
)
def test_json_is_read_whatever_charset_it_names(content_type, client):
    headers = {"Content-Type": content_type}
    assert client.post("/v1/chat/completions", content=BODY, headers=headers).status_code == 200


HEADERS = {"Content-Type": "application/json"}
TEXT = "Wie heißt das? 你好"


def body(text=TEXT):
    fields = {"model": "demo", "messages": [{"role": "user", "content": text}]}
    return json.dumps(fields, ensure_ascii=False)


@pytest.mark.parametrize("encode", [str.encode, lambda text: codecs.BOM_UTF8 + text.encode()])
def test_utf_8_is_read_with_or_without_a_byte_order_mark(encode, client, server):
    answer = client.post("/v1/chat/completions", content=encode(body()), headers=HEADERS)
    assert answer.status_code == 200
    assert TEXT in server.last_call.prompt["prompt"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_unicode_is_read_as_python_does(encoding, client, server):
    assert client.post("/v1/chat/completions", content=body().encode(encoding), headers=HEADERS).status_code == 200
    assert TEXT in server.last_call.prompt["prompt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (body("Wie heißt das?").encode("latin-1"), "body is no text at byte 67 (0xdf), expected JSON in UTF-8."),
        (body().encode()[:-1] + b"\xc3", "body is no text at byte 85 (0xc3), expected JSON in UTF-8."),
        (b"[" * 100_000, "body is nested too deeply, expected fewer objects and lists in each other."),
        (b'{"n": %s}' % (b"1" * 5000), "body is JSON with a longer number, expected numbers of at most 4300 digits."),
    ],
    ids=["latin-1", "cut character", "deep", "long number"],
)
@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_python_cannot_read_is_refused_with_the_reason(path, content, message, client, server):
    assert refusal(client.post(path, content=content, headers=HEADERS)) == ("body", message)
    assert server.engine.calls == []
