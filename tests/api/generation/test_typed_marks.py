"""A mark that a person typed stays text; pictures stand where their parts are."""

from __future__ import annotations

from itertools import groupby

import pytest

from duet_server.api.generation.typed_marks import Mark, as_text, hide
from tests.api.generation.test_chat import refusal
from tests.api.stand_in import image_part, user

MARK = Mark("<image>", 4, (65, 66), "\ufdd0")
HARMLESS = "(image)"


def layout(server):
    """The last prompt's runs of pictures and text, with the number of tokens of each."""
    token_ids = server.last_call.prompt["prompt_token_ids"]
    return [
        ("picture" if mark else "text", len(list(run))) for mark, run in groupby(token_ids, lambda token: token == 4)
    ]


CASES = {
    "in the system's text": [{"role": "system", "content": "Never write %s tags."}, user(image_part(), "What is it?")],
    "before the picture": [user("What does %s mean?", image_part())],
    "behind the picture": [user(image_part(), "What does %s mean?")],
    "between two pictures": [user(image_part(), "and %s and", image_part("green"), "What differs?")],
    "twice, before two pictures": [user("%s%s", image_part(), "and", image_part("green"), "What differs?")],
    "in an earlier answer": [
        user(image_part(), "What?"),
        {"role": "assistant", "content": "A %s."},
        user("Which?", image_part("green"), "Well?"),
    ],
    "in a tool's result": [
        user(image_part(), "What?"),
        {"role": "tool", "tool_call_id": "1", "content": "found %s"},
        user("Well?"),
    ],
}


def filled(value, word):
    if isinstance(value, str):
        return value.replace("%s", word)
    if isinstance(value, dict):
        return {key: filled(item, word) for key, item in value.items()}
    return [filled(item, word) for item in value]


@pytest.mark.parametrize("compression", ["off", "aggressive"])
@pytest.mark.parametrize("name", CASES)
def test_the_layout_is_that_of_harmless_text(chat, server, name, compression):
    layouts, calls = [], []
    for word in (HARMLESS, "<image>"):
        answer = chat(*filled(CASES[name], word), compression=compression)
        assert answer.status_code == 200, answer.text
        layouts.append(layout(server))
        calls.append(server.last_call)
    assert layouts[0] == layouts[1], "both words have seven characters, and each is a token of the random model"
    assert calls[0].spans == calls[1].spans
    tokenizer = server.engine.renderer.get_tokenizer()
    decoded = [tokenizer.decode(call.prompt["prompt_token_ids"]) for call in calls]
    pictures = sum(end - start for start, end in calls[0].spans)
    assert decoded[1].count("<image>") == pictures + str(CASES[name]).count("%s")
    assert decoded[0].replace(HARMLESS, "<image>") == decoded[1]


def test_without_pictures_the_mark_is_text_too(chat, server):
    chat(user("What does <image> mean?"))
    assert 4 not in server.last_call.prompt["prompt_token_ids"]


def test_the_tokens_that_a_client_is_shown_are_the_same(client):
    body = {"model": "demo", "messages": [user("What does <image> mean?")]}
    assert 4 not in client.post("/tokenize", json=body).json()["tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": [{"role": "user", "content": "Is <image> a tag?"}]}),
        ("/v1/messages", {"max_tokens": 4, "messages": [{"role": "user", "content": "Is <image> a tag?"}]}),
        ("/v1/chat/completions/batch", {"messages": [[user("Is <image> a tag?")]]}),
    ],
)
def test_on_every_route_of_chats(client, server, path, body):
    assert client.post(path, json={"model": "demo", **body}).status_code == 200
    assert 4 not in server.last_call.prompt["prompt_token_ids"]


def test_a_text_that_has_the_stand_in_itself_is_refused(chat, server):
    param, message = refusal(chat(user("\ufdd0", image_part(), "What?")))
    assert param == "messages"
    assert "U+FDD0" in message
    assert server.engine.calls == []


def test_only_texts_are_hidden():
    part = {"type": "text", "text": "a <image>", "image_url": {"url": "<image>"}}
    hidden = hide([{"role": "user", "content": (part for _ in range(1)), "name": "<image>"}], [MARK])
    assert hidden[0]["content"][0]["text"] == "a \ufdd0"
    assert hidden[0]["content"][0]["image_url"] == {"url": "<image>"}
    assert part["text"] == "a <image>", "the client's own message stays as it is"


def test_typed_marks_become_the_tokens_of_their_characters():
    assert as_text([1, 4, 7, 4, 4], [False, True, False], [MARK]) == [1, 4, 7, 65, 66, 4]
