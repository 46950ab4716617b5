"""openai-python against the running server, unchanged: compression is set in ``extra_body`` only."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from benchmarks.robustness.small_server import MODEL
from tests.golden_cases import golden_cases
from tests.serving.running_server import picture_and_text

PICTURES = [case.picture_path for case in golden_cases("llava_mha")[:3]]
QUESTION = {"role": "user", "content": picture_and_text(PICTURES[0], "What color is the circle?")}
GREEDY = {"model": MODEL, "messages": [QUESTION], "max_tokens": 12, "temperature": 0}


class Circle(BaseModel):
    color: Literal["red", "green", "blue"]
    filled: bool
    size: Literal[1, 2, 3]


def compressed(setting: Any) -> dict[str, Any]:
    return {"extra_body": {"compression": setting}}


@pytest.fixture(scope="module")
def terse(server) -> dict[str, int]:
    """A logit bias against white space: JSON allows any amount of it, and random weights may never stop writing it."""
    prompt = {"model": MODEL, "prompt": " \n\t\r", "add_special_tokens": False}
    return dict.fromkeys(map(str, server.client.post("/tokenize", json=prompt).json()["tokens"]), -100)


def segments(answer: Any) -> list[int]:
    return answer.usage.model_extra["compression"]["visual_tokens"]["segments"]


def test_sync_async_and_streams_agree(client, server):
    settings = ["aggressive", "visionzip", "off"]
    expected = [client.chat.completions.create(**GREEDY, **compressed(setting)) for setting in settings]
    assert [segments(answer) for answer in expected] == [[102, 51, 0], [64, 64, 64], [576, 576, 576]]
    assert len({answer.choices[0].message.content for answer in expected}) == 3

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none") as sdk:
            whole = [sdk.chat.completions.create(**GREEDY, **compressed(setting)) for setting in settings]
            return await asyncio.gather(*whole, *(stream(sdk, setting) for setting in settings))

    async def stream(sdk: openai.AsyncOpenAI, setting: str) -> tuple[str, Any]:
        fields = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}, **compressed(setting)}
        chunks = [chunk async for chunk in await sdk.chat.completions.create(**fields)]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]), chunks[-1].usage

    answers = asyncio.run(ask())
    texts_and_usages = [(answer.choices[0].message.content, answer.usage) for answer in expected]
    assert [(answer.choices[0].message.content, answer.usage) for answer in answers[:3]] == texts_and_usages
    assert answers[3:] == texts_and_usages


def test_a_stream_says_its_usage_only_if_asked(client):
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, **compressed("aggressive")))
    assert all(chunk.usage is None for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == client.chat.completions.create(**GREEDY, **compressed("aggressive")).choices[0].message.content


@pytest.mark.parametrize("setting", ["off", "aggressive"])
def test_parse_into_a_model(client, terse, setting):
    fields = {**GREEDY, "max_tokens": 48, "logit_bias": terse, **compressed(setting)}
    answer = client.chat.completions.parse(response_format=Circle, **fields)
    assert isinstance(answer.choices[0].message.parsed, Circle)
    assert segments(answer)[0] == {"off": 576, "aggressive": 102}[setting]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Circle"}}], ids=str)
def test_tools(client, terse, choice):
    tools = [openai.pydantic_function_tool(Circle)]
    fields = {**GREEDY, "max_tokens": 120, "logit_bias": terse, "tools": tools, "tool_choice": choice}
    fields |= compressed("aggressive")
    (call,) = client.chat.completions.parse(**fields).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Circle)
    with client.chat.completions.stream(**fields) as events:
        (streamed,) = events.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.parsed_arguments == call.function.parsed_arguments


def test_logprobs_choices_and_seeds(client):
    def ask(seed: int) -> list[Any]:
        fields = {**GREEDY, "temperature": 1.0, "n": 2, "seed": seed, "logprobs": True, "top_logprobs": 3}
        return client.chat.completions.create(**fields, **compressed("aggressive")).choices

    first, again, other = ask(5), ask(5), ask(9)
    assert [choice.message.content for choice in first] == [choice.message.content for choice in again]
    assert len({choice.message.content for choice in (*first, *other)}) == 4
    for choice, same in zip(first, again, strict=True):
        assert len(choice.logprobs.content) == 12
        for token, repeated in zip(choice.logprobs.content, same.logprobs.content, strict=True):
            assert len(token.top_logprobs) >= 3
            assert token.logprob == pytest.approx(repeated.logprob, abs=1e-4)


def test_several_pictures_over_several_turns(client):
    messages = [
        {"role": "system", "content": "You look at pictures."},
        {"role": "user", "content": picture_and_text(PICTURES[0], "And") + picture_and_text(PICTURES[1], "which?")},
    ]
    answer = client.chat.completions.create(**GREEDY | {"messages": messages}, **compressed("aggressive"))
    assert segments(answer) == [204, 102, 0]
    messages += [
        {"role": "assistant", "content": answer.choices[0].message.content},
        {"role": "user", "content": picture_and_text(PICTURES[2], "And here?")},
    ]
    second = client.chat.completions.create(**GREEDY | {"messages": messages}, **compressed("aggressive"))
    assert segments(second) == [306, 153, 0]


def test_responses(client, terse):
    content = [
        {"type": "input_image", "image_url": QUESTION["content"][0]["image_url"]["url"], "detail": "auto"},
        {"type": "input_text", "text": "What color is the circle?"},
    ]
    fields = {
        "model": MODEL,
        "input": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_output_tokens": 48,
        "extra_body": {"compression": "aggressive", "logit_bias": terse},
    }
    answer = client.responses.create(**fields)
    assert segments(answer) == [102, 51, 0]
    with client.responses.stream(**fields) as events:
        streamed = events.get_final_response()
    assert streamed.output_text == answer.output_text != ""
    assert streamed.usage == answer.usage
    parsed = client.responses.parse(text_format=Circle, **fields)
    assert isinstance(parsed.output_parsed, Circle)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**fields | compressed({"keep": [0.5]}))
    assert refused.value.param == "compression.keep"


def test_completions_have_no_compression(client):
    fields: dict[str, Any] = {"model": MODEL, "prompt": "What is the capital of France?", "max_tokens": 4}
    assert not client.completions.create(**fields).usage.model_extra.get("compression")
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**fields, **compressed("light"))
    assert refused.value.param == "compression"
    assert "/v1/completions does not compress" in json.dumps(refused.value.body)


def test_one_model_can_be_retrieved(client):
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("org/other")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
