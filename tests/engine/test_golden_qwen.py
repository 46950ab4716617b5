"""Qwen2.5-VL in the engine against the authors' numbers: selections, features, positions and logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from duet_server.engine import model as model_module
from duet_server.engine import text_stage
from tests.engine.in_process import Ask, InProcessEngine, in_process_engine
from tests.golden_qwen import BOUNDARIES, CHECKPOINT, GoldenQwenCase


@pytest.fixture(scope="module")
def engine() -> InProcessEngine:
    engine_args = {"enable_prefix_caching": False, "additional_config": {"duet": {"boundaries": list(BOUNDARIES)}}}
    with in_process_engine(CHECKPOINT, limit_mm_per_prompt={"image": 4, "video": 0}, **engine_args) as engine:
        yield engine


def ask_of(case: GoldenQwenCase) -> Ask:
    picture = Image.open(case.picture_path).convert("RGB")
    keep = case.keep if case.kept_rows else None
    return Ask(case.fields["prompt_token_ids"], [picture], case.stage1, keep, sampling={"logprobs": -1})


class Recorder:
    """Records what the stages compute for the latest request."""

    def __init__(self, patch: pytest.MonkeyPatch, engine: InProcessEngine) -> None:
        self.kept_rows: list[list[int]] = []
        self.encoded = self.unit = self.first_inputs = None
        cut, survive, decoder = model_module.cut, text_stage.surviving_rows, engine.model.decoder
        first = decoder.segments[0]

        def seen_cut(encoded, units, **order):
            self.encoded, (self.unit,) = encoded, cut(encoded, units, **order)
            return [self.unit]

        def seen_survive(*args):
            result = survive(*args)
            self.kept_rows.append(result[0].tolist())
            return result

        def seen_first(positions, hidden, *args, **kwargs):
            if self.first_inputs is None:
                self.first_inputs = positions.clone(), hidden.clone()
            return first(positions, hidden, *args, **kwargs)

        patch.setattr(model_module, "cut", seen_cut)
        patch.setattr(text_stage, "surviving_rows", seen_survive)
        seen_first.layers = first.layers
        patch.setattr(decoder, "segments", (seen_first, *decoder.segments[1:]))


def test_each_case_alone(engine, monkeypatch):
    for case in GoldenQwenCase.all():
        with monkeypatch.context() as patch:
            seen = Recorder(patch, engine)
            engine.llm.reset_mm_cache()
            engine.engine.reset_encoder_cache()
            (output,) = engine.generate(ask_of(case))
        assert list(output.token_ids) == case.tokens, case
        check_stages(case, seen)
        expected = torch.tensor(case.arrays["logits"]).log_softmax(dim=-1).numpy()
        found = [[step[token].logprob for token in range(expected.shape[1])] for step in output.logprobs]
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def check_stages(case: GoldenQwenCase, seen: Recorder) -> None:
    arrays = {name: torch.tensor(array) for name, array in case.arrays.items()}
    positions, hidden = seen.first_inputs
    assert torch.equal(positions, arrays["position_ids"]), case
    torch.testing.assert_close(hidden, arrays["projected"], atol=1e-4, rtol=1e-4)
    assert seen.kept_rows == case.kept_rows, case
    if case.has_stage1:
        torch.testing.assert_close(seen.encoded.rows, arrays["merged"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen.encoded.score, arrays["stage1_scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.encoded.metric, arrays["stage1_keys"], atol=1e-5, rtol=1e-4)
        assert seen.unit.places.tolist() == case.fields["kept_indices"], case


def test_all_cases_in_one_batch(engine):
    text = Ask([1, *range(40, 70)])
    alone = engine.tokens(text)[0]
    cases = GoldenQwenCase.all()
    assert engine.tokens(text, *map(ask_of, cases)) == [alone, *(case.tokens for case in cases)]


def test_a_short_step_gives_the_same_tokens(engine, monkeypatch):
    """Chunked prefill of prompts from which stage 2 drops nothing: a picture's places are added in every chunk."""
    cases = [case for case in GoldenQwenCase.all() if not case.kept_rows]
    monkeypatch.setattr(engine.scheduler, "max_num_scheduled_tokens", 40)
    asks = [replace(ask_of(case), sampling={}) for case in cases]
    assert engine.tokens(*asks) == [case.tokens for case in cases]
