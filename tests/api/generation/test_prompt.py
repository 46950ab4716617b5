from __future__ import annotations

from types import SimpleNamespace

import pytest

from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt, find_part, user_texts
from duet_server.plan import presets
from tests.plan.shapes import LLAVA_7B

IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def test_only_the_users_text_parts_count():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}, "Where?"]},
        {"role": "assistant", "content": "There."},
        {"role": "user", "content": "And when?"},
        {"role": "user", "content": [{"type": "input_text", "text": "Who?"}]},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": None},
    ]
    assert user_texts(messages) == ["What?", "Where?", "And when?", "Who?"]


def test_parts_are_found_by_type_or_key():
    assert find_part([{"role": "user", "content": [{"image_embeds": "AA"}]}], "image_embeds") == {"image_embeds": "AA"}
    assert find_part([{"role": "user", "content": [{"type": "image_embeds"}]}], "image_embeds")
    assert not find_part([{"role": "user", "content": [IMAGE, "image_embeds"]}], "image_embeds")


def test_spans_are_the_image_placeholders():
    placeholders = {"image": [SimpleNamespace(offset=3, length=2), SimpleNamespace(offset=7, length=2)]}
    engine_input = {"prompt": "a", "prompt_token_ids": list(range(10)), "mm_placeholders": placeholders}
    assert RenderedPrompt.from_engine_input(engine_input).visual_spans == ((3, 5), (7, 9))
    assert RenderedPrompt.from_engine_input({"prompt_token_ids": [1]}) == RenderedPrompt(None, [1], ())


def test_placeholders_of_another_length_fail_an_assertion():
    """The prompt must have been rendered with the settings that it is planned with."""
    settings = presets(LLAVA_7B)["aggressive"]
    prompt = RenderedPrompt("", range(600), ((1, 577),))
    with pytest.raises(AssertionError, match="entering=102"):
        CompressedPrompt.make(settings, prompt, LLAVA_7B)
