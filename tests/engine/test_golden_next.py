"""LLaVA-NeXT in the engine against the authors' numbers: rows of the tiles, selections and logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from duet_server.engine import text_stage
from tests.engine.in_process import Ask, InProcessEngine, in_process_engine
from tests.golden_next import BOUNDARIES, CHECKPOINT, GoldenNextCase


@pytest.fixture(scope="module")
def engine() -> InProcessEngine:
    engine_args = {"max_model_len": 4096, "max_num_batched_tokens": 4096, "enable_prefix_caching": False}
    duet = {"boundaries": list(BOUNDARIES)}
    with in_process_engine(CHECKPOINT, additional_config={"duet": duet}, **engine_args) as engine:
        yield engine


def ask_of(case: GoldenNextCase) -> Ask:
    pictures = [Image.open(path).convert("RGB") for path in case.picture_paths]
    return Ask(case.fields["prompt_token_ids"], pictures, case.stage1, case.keep, sampling={"logprobs": -1})


def test_each_case_alone(engine, monkeypatch):
    for case in GoldenNextCase.all():
        kept_rows, entered = [], []
        survive, first = text_stage.surviving_rows, engine.model.decoder.segments[0]

        def seen_survive(*args, kept_rows=kept_rows, survive=survive):
            result = survive(*args)
            kept_rows.append(result[0].tolist())
            return result

        def seen_first(positions, hidden, *args, entered=entered, first=first):
            entered.append(hidden.clone())
            return first(positions, hidden, *args)

        seen_first.layers = first.layers
        with monkeypatch.context() as patch:
            patch.setattr(text_stage, "surviving_rows", seen_survive)
            patch.setattr(engine.model.decoder, "segments", (seen_first, *engine.model.decoder.segments[1:]))
            engine.llm.reset_mm_cache()
            engine.engine.reset_encoder_cache()
            (output,) = engine.generate(ask_of(case))
        assert list(output.token_ids) == case.tokens, case
        assert kept_rows == case.fields.get("kept_rows_per_stage", []), case
        check_rows(case, entered[0])
        # transformers resamples the small view by up to a level of 255 otherwise than the authors' preprocessing.
        expected = torch.tensor(case.arrays["logits"]).log_softmax(dim=-1).numpy()
        found = [[step[token].logprob for token in range(expected.shape[1])] for step in output.logprobs]
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)


def check_rows(case: GoldenNextCase, hidden: torch.Tensor) -> None:
    """The sequence that enters the decoder, or every 16th row of a long one."""
    whole = "projected" in case.arrays
    expected = torch.tensor(case.arrays["projected" if whole else "projected_every_16th"])
    torch.testing.assert_close(hidden if whole else hidden[::16], expected, atol=2e-2, rtol=0)


def test_all_cases_in_one_batch(engine):
    text = Ask([1, *range(40, 70)])
    alone = engine.tokens(text)[0]
    cases = GoldenNextCase.all()
    assert engine.tokens(text, *map(ask_of, cases)) == [alone, *(case.tokens for case in cases)]
