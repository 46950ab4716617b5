"""The engine's selections, features and logits against the authors' numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vllm import SamplingParams

from duet_server.engine import cut, text_stage
from duet_server.offline import chat
from duet_server.plan import SettingsError
from tests.engine.in_process import Ask, in_process_engine
from tests.golden_cases import MODEL_NAMES, GoldenCase, checkpoint_path, golden_cases


class Recorder:
    """Records what the stages compute for the latest request."""

    def __init__(self, patch):
        self.features = self.by_score = None
        self.kept_rows, self.segment_lens = [], []
        self._wrap(patch, cut, "select_and_merge", self._saw_stage1)
        self._wrap(patch, text_stage, "surviving_rows", self._saw_boundary)

    def _wrap(self, patch, module, name, see):
        original = getattr(module, name)

        def wrapper(*args, **kwargs):
            result = original(*args, **kwargs)
            see(result)
            return result

        patch.setattr(module, name, wrapper)

    def _saw_stage1(self, result):
        self.features, self.by_score, _ = result

    def _saw_boundary(self, result):
        self.kept_rows.append(result[0].tolist())


@pytest.fixture(scope="module", params=MODEL_NAMES)
def engine(request):
    with in_process_engine(checkpoint_path(request.param), enable_prefix_caching=False) as engine:
        engine.model_name = request.param
        yield engine


def ask_of(case: GoldenCase) -> Ask:
    return Ask(
        case.prompt_token_ids,
        [Image.open(case.picture_path).convert("RGB")],
        (case.dominant, case.contextual, case.cluster_width),
        case.keep,
        "all" if case.salient_prompt_indices is None else "salient",
        [] if case.salient_prompt_indices is None else case.guiding_rows[:-1],
        sampling={"logprobs": -1},
    )


def test_each_case_alone(engine, monkeypatch):
    for case in golden_cases(engine.model_name):
        with monkeypatch.context() as patch:
            seen = Recorder(patch)
            engine.llm.reset_mm_cache()
            engine.engine.reset_encoder_cache()
            (output,) = engine.generate(ask_of(case))
        assert list(output.token_ids) == case.tokens, case
        assert seen.by_score[0, : case.dominant - 1].tolist() == case.dominant_patch_indices, case
        torch.testing.assert_close(seen.features.cpu().numpy(), case.stage1_features, atol=1e-4, rtol=1e-4)
        moving = [rows for rows, keep in zip(case.kept_rows_per_stage, case.keep, strict=True) if keep < 1]
        assert seen.kept_rows == moving, case
        logprobs = np.array(
            [[step[token].logprob for token in range(case.logits.shape[1])] for step in output.logprobs]
        )
        expected = torch.tensor(case.logits).log_softmax(dim=-1).numpy()
        np.testing.assert_allclose(logprobs, expected, atol=1e-4, rtol=0)


def test_all_cases_in_one_batch(engine):
    cases = golden_cases(engine.model_name)
    text = Ask([1, *range(40, 70)])
    asks = [text, *(ask_of(case) for case in cases), Ask(cases[0].prompt_token_ids, ask_of(cases[0]).images)]
    alone = engine.tokens(text)[0]
    tokens = engine.tokens(*asks)
    assert tokens[0] == alone
    assert tokens[1:-1] == [case.tokens for case in cases]


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def conversation(case: GoldenCase) -> list[dict[str, Any]]:
    picture = {"type": "image_pil", "image_pil": Image.open(case.picture_path).convert("RGB")}
    return [{"role": "user", "content": [picture, {"type": "text", "text": case.question}]}]


def test_offline_chats_give_the_authors_tokens(engine):
    for case in golden_cases(engine.model_name):
        answers = chat(engine.llm, [conversation(case)] * 2, case.compression, greedy(len(case.tokens)), use_tqdm=False)
        assert [list(answer.outputs[0].token_ids) for answer in answers] == [case.tokens] * 2, case


def test_an_offline_chat_without_compression_is_vllms(engine):
    messages = conversation(golden_cases(engine.model_name)[0])
    (ours,) = chat(engine.llm, messages, "off", greedy(8), use_tqdm=False)
    (vllms,) = engine.llm.chat(messages, greedy(8), use_tqdm=False)
    assert ours.prompt_token_ids == vllms.prompt_token_ids
    assert ours.outputs[0].token_ids == vllms.outputs[0].token_ids


@pytest.mark.parametrize(
    ("compression", "params", "message"),
    [
        ("none", {}, "compression is 'none', expected one of off, light"),
        ("light", {"prompt_logprobs": 1}, "prompt_logprobs is 1, expected none"),
    ],
)
def test_an_offline_chat_that_cannot_be_served_is_refused(engine, compression, params, message):
    messages = conversation(golden_cases(engine.model_name)[0])
    with pytest.raises(SettingsError, match=f"^{message}"):
        chat(engine.llm, messages, compression, SamplingParams(**params), use_tqdm=False)
    assert not engine.engine.has_unfinished_requests()


def test_an_offline_prompt_that_does_not_fit_a_step_is_refused(engine, monkeypatch):
    scheduler_config = engine.llm.llm_engine.vllm_config.scheduler_config
    monkeypatch.setattr(scheduler_config, "max_num_scheduled_tokens", 16)
    messages = conversation(golden_cases(engine.model_name)[0])
    with pytest.raises(SettingsError, match=r"^messages is \d+, expected at most 16 tokens with stage 2 on"):
        chat(engine.llm, messages, "aggressive", SamplingParams(max_tokens=250), use_tqdm=False)


def test_offline_chats_of_nothing_have_no_answers(engine):
    assert chat(engine.llm, [], "light", use_tqdm=False) == engine.llm.chat([], use_tqdm=False) == []


def test_an_offline_answer_of_no_length_gets_what_fits(engine):
    messages = conversation(golden_cases(engine.model_name)[0])
    params = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    (answer,) = chat(engine.llm, messages, "aggressive", params, use_tqdm=False)
    assert len(answer.prompt_token_ids) + len(answer.outputs[0].token_ids) == 1024
    assert params.max_tokens is None
