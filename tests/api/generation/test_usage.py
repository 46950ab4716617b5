from __future__ import annotations

import json

import pytest

from duet_server.api.generation.usage import total_usage, with_message_usage, with_usage_chunk

USAGE = {"reduction": 0.5, "settings": {"text": "Größe"}}


def event(**chunk):
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def test_the_usage_chunk_of_a_stream_gets_compression():
    chunk = {"id": "x", "choices": [], "usage": {"prompt_tokens": 3}, "system_fingerprint": "f"}
    changed = with_usage_chunk(event(**chunk), USAGE)
    assert changed.endswith("\n\n")
    expected = {**chunk, "usage": {"prompt_tokens": 3, "compression": USAGE}}
    assert json.loads(changed.removeprefix("data: ")) == expected


@pytest.mark.parametrize(
    "untouched",
    [
        "data: [DONE]\n\n",
        ": keep-alive\n\n",
        event(id="x", choices=[{"delta": {"content": "a"}}]),
        event(id="x", choices=[{"delta": {"content": "a"}}], usage={"prompt_tokens": 3}),
        event(id="x", choices=[{"delta": {"content": '"choices":[]'}}], usage={"prompt_tokens": 3}),
        event(id="x", choices=[{"delta": {"extra": {"choices": []}}}], usage={"prompt_tokens": 3}),
        event(error={"message": "failed", "choices": []}),
        event(id="x", choices=[], usage=None),
    ],
)
def test_all_other_events_are_unchanged(untouched):
    assert with_usage_chunk(untouched, USAGE) == untouched


def of_prompt(num_images, segments, token_layers):
    tokens = {"encoder": 10 * num_images, "segments": segments, "layer_average": sum(segments) / 2}
    modalities = {"image": {"items": num_images}} if num_images else {}
    cache = {"token_layers": token_layers}
    totals = {"visual_tokens": tokens, "by_modality": modalities, "kv_cache": cache}
    return {**totals, "reduction": 0.1, "settings": "same"}


def test_usage_is_summed_over_prompts():
    total = total_usage([of_prompt(2, [8, 4], 30), None, of_prompt(0, [0, 0], 5), of_prompt(1, [4, 2], 7)])
    assert total == {**of_prompt(3, [12, 6], 42), "reduction": 0.7}
    assert total_usage([of_prompt(0, [0, 0], 5), of_prompt(2, [8, 4], 30)])["by_modality"] == {"image": {"items": 2}}
    video = of_prompt(1, [4, 2], 7) | {"by_modality": {"video": {"items": 3}}}
    both = {"image": {"items": 3}, "video": {"items": 3}}
    assert total_usage([of_prompt(2, [8, 4], 30), video, of_prompt(1, [4, 2], 7)])["by_modality"] == both
    assert total_usage([of_prompt(0, [0, 0], 5)])["reduction"] == 0.0
    assert total_usage([None]) is None


def test_the_last_delta_of_a_message_gets_compression():
    delta = 'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"input_tokens":3}}\n\n'
    head, _, data = with_message_usage(delta, USAGE).partition("data: ")
    assert (head, data[-2:]) == ("event: message_delta\n", "\n\n")
    assert json.loads(data)["usage"] == {"input_tokens": 3, "compression": USAGE}
    start = 'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
    assert with_message_usage(start, USAGE) == start
