from __future__ import annotations

import pytest

from duet_server.api.checks import fit_max_tokens
from duet_server.api.errors import RequestRefusedError
from duet_server.api.schema import DuetChatCompletionRequest
from tests.api.stand_in import user


def request(**fields):
    return DuetChatCompletionRequest(messages=[user("hi")], **fields)


def fit(asked, num_prompt_tokens, limit=100, max_model_len=400, **defaults):
    fit_max_tokens(asked, num_prompt_tokens, limit, max_model_len, defaults)
    return asked.max_completion_tokens


def test_an_open_length_becomes_what_fits():
    assert fit(request(), 70) == 30
    assert fit(request(), 99) == 1


def test_an_open_length_that_fits_stays_open():
    assert fit(request(), 70, max_model_len=100) is None
    assert fit(request(), 70, max_tokens=30) is None


def test_a_servers_default_beyond_it_is_cut():
    assert fit(request(), 70, max_tokens=31) == 30


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_length_that_was_asked_for_is_kept_or_refused(field):
    asked = request(**{field: 30})
    fit(asked, 70)
    assert vars(asked)[field] == 30
    with pytest.raises(
        RequestRefusedError, match=rf"{field} is 31, expected at most 30 .*--max-num-batched-tokens is 100"
    ):
        fit(request(**{field: 31}), 70)


def test_the_context_length_counts_before_the_step():
    """What vLLM would cut anyway is no reason to refuse."""
    assert fit(request(max_completion_tokens=90), 70, max_model_len=95) == 90


@pytest.mark.parametrize("num_prompt_tokens", [100, 101])
def test_a_prompt_without_room_for_an_answer_is_refused(num_prompt_tokens):
    with pytest.raises(
        RequestRefusedError, match=f"messages is {num_prompt_tokens}, expected at most 99 prompt tokens"
    ):
        fit(request(), num_prompt_tokens)
