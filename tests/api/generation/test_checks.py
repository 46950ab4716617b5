"""A prompt whose tokens stage 2 drops must fit one engine step. Its answer need not."""

from __future__ import annotations

import pytest

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.checks import check_stage2
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt
from duet_server.api.generation.schema import DuetChatCompletionRequest, DuetResponsesRequest
from duet_server.plan import Unit, VisualItem, VisualRows, presets
from tests.api.stand_in import user
from tests.plan.shapes import LLAVA_7B

CHAT = DuetChatCompletionRequest(messages=[user("hi")], max_tokens=9_999)


def prompt(num_tokens, span=(5, 107)):
    image = VisualItem("image", span, 576, (Unit(24, 24, 72, 30, 4),))
    rendered = RenderedPrompt("", range(num_tokens), VisualRows([span], []), (image,))
    return CompressedPrompt.make(presets(LLAVA_7B)["aggressive"], rendered, LLAVA_7B)


@pytest.mark.parametrize(
    ("request_", "field"), [(CHAT, "messages"), (DuetResponsesRequest(input="hi", max_output_tokens=9_999), "input")]
)
def test_only_the_prompt_must_fit_a_step(request_, field):
    check_stage2(request_, prompt(200), 200)
    with pytest.raises(RequestRefusedError) as refused:
        check_stage2(request_, prompt(201), 200)
    assert refused.value.parameter == field
    assert refused.value.reason == "too_long"
    assert str(refused.value).startswith("This model's maximum context length is 200 tokens with stage 2 ")
    assert "your prompt contains 201 input tokens" in str(refused.value)


def test_the_last_row_is_text():
    with pytest.raises(RequestRefusedError, match="messages is a prompt that ends with an image, expected text after"):
        check_stage2(CHAT, prompt(107), 200)
