from __future__ import annotations

import pytest

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.checks import room_for_answer
from duet_server.api.generation.schema import DuetChatCompletionRequest, DuetResponsesRequest
from tests.api.stand_in import user


def request(**fields):
    return DuetChatCompletionRequest(messages=[user("hi")], **fields)


def room(asked, num_prompt_tokens, limit=100, max_model_len=400, **defaults):
    return room_for_answer(asked, num_prompt_tokens, limit, max_model_len, defaults)


def num_tokens(asked, max_tokens):
    return asked.to_sampling_params(max_tokens, {}).max_tokens


@pytest.mark.parametrize("make", [request, lambda: DuetResponsesRequest(input="hi")])
def test_without_a_length_the_answer_gets_the_room_that_is_left(make):
    asked = make()
    assert room(asked, 70) == 30
    assert room(asked, 99) == 1
    assert num_tokens(asked, 330) == 330
    asked.duet.room = 30
    assert num_tokens(asked, 330) == 30
    assert num_tokens(asked, 20) == 20


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_requested_length_is_kept_or_refused(field):
    def make(length):
        return (
            DuetResponsesRequest(input="hi", max_output_tokens=length)
            if "output" in field
            else request(**{field: length})
        )

    assert room(make(30), 70) == 30
    with pytest.raises(
        RequestRefusedError, match=rf"{field} is 31, expected at most 30 .*--max-num-batched-tokens is 100"
    ):
        room(make(31), 70)


def test_of_two_lengths_the_one_that_vllm_uses_is_checked():
    assert room(request(max_tokens=31, max_completion_tokens=30), 70) == 30


def test_a_length_is_cut_to_the_context_before_it_is_checked():
    """vLLM cuts such a length itself, so it is not refused."""
    assert room(request(max_completion_tokens=90), 70, max_model_len=95) == 30


@pytest.mark.parametrize("num_prompt_tokens", [100, 101])
@pytest.mark.parametrize(("asked", "field"), [(request(), "messages"), (DuetResponsesRequest(input="hi"), "input")])
def test_a_prompt_without_room_for_an_answer_is_refused(num_prompt_tokens, asked, field):
    with pytest.raises(RequestRefusedError, match=f"{field} is {num_prompt_tokens}, expected at most 99 prompt tokens"):
        room(asked, num_prompt_tokens)
