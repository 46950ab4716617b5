"""Traces of the rows that a request's stages chose, against the authors' selections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from duet_kernels import select_and_merge
from duet_server.engine.cut import Encoded
from duet_server.engine.step_layout import StepLayout
from duet_server.engine.trace import MAX_TRACES, Traces
from duet_server.plan import Unit, make_layout, make_plan
from tests.engine.in_process import Ask, InProcessEngine, in_process_engine, noise_picture
from tests.engine.test_golden_engine import ask_of
from tests.golden_cases import GoldenCase, checkpoint_path, golden_cases

MODEL = "llava_gqa"


@pytest.fixture(scope="module")
def engine() -> InProcessEngine:
    with in_process_engine(checkpoint_path(MODEL)) as engine:
        yield engine


def check(case: GoldenCase, trace: dict) -> None:
    (image,) = trace["images"][0]
    assert image["dominant"] == sorted(case.dominant_patch_indices), case
    ranked = sorted(range(len(image["scores"])), key=lambda patch: -image["scores"][patch])
    assert ranked[: case.dominant - 1] == case.dominant_patch_indices, case
    assert len(image["contextual"]) == case.contextual

    rows = list(range(case.prefill_len))
    for segment_idx, (kept_rows, keep) in enumerate(zip(case.kept_rows_per_stage, case.keep, strict=True), start=1):
        if keep == 1:
            assert segment_idx not in trace["segments"], case
            continue
        segment = trace["segments"][segment_idx]
        previous, rows = rows, [rows[row] for row in kept_rows]
        assert segment["rows"] == rows, case
        assert len(segment["scores"]) == (keep > 0), case
        for first, scores in segment["scores"]:
            pool = dict(zip(previous[first:], scores, strict=False))
            assert all(row in rows or score <= min(pool[r] for r in rows if r in pool) for row, score in pool.items())


def test_every_case_in_one_batch_has_the_authors_selections(engine):
    """In a batch with requests that are not traced; one has the same picture and settings, and the caches are warm."""
    cases = golden_cases(MODEL)
    plain = [ask_of(case) for case in cases[:3]]
    expected = [case.tokens for case in (*cases[:3], *cases)]
    assert engine.tokens(*plain) == expected[:3]
    traced = [replace(ask_of(case), trace_id=100 + idx) for idx, case in enumerate(cases)]
    assert engine.tokens(*plain, *traced) == expected
    for idx, case in enumerate(cases):
        check(case, engine.take_trace(100 + idx))
    assert engine.take_trace(100) is None, "taken already"
    assert not engine.model.decoder.traces._traces, "a request that was not traced has left a trace"


def test_pictures_keep_their_numbers(engine):
    """Two pictures in one prompt are ranked separately; each trace is the same as for the picture alone."""
    pictures = [noise_picture(seed) for seed in (1, 2)]
    prompt = [1, *range(40, 50), 4, *range(60, 65), 4, *range(70, 80)]
    both = Ask(prompt, pictures, (20, 4, 2), [0.5, 0.0], trace_id=1)
    alone = [Ask([1, 4, 40], [picture], (20, 4, 2), trace_id=2 + idx) for idx, picture in enumerate(pictures)]
    engine.tokens(both, *alone)
    together = engine.take_trace(1)
    for idx in range(2):
        single = engine.take_trace(2 + idx)
        assert single["segments"] == {}, "nothing was dropped"
        for key, value in single["images"][0][0].items():
            assert together["images"][idx][0][key] == (pytest.approx(value, rel=1e-3) if key == "scores" else value)
    assert [len(scores) for _, scores in together["segments"][1]["scores"]] == [24, 24]
    assert together["segments"][2]["rows"] == [row for row, token in enumerate(_expanded(prompt)) if token != 4]


def _expanded(prompt: list[int]) -> list[int]:
    return [token for token in prompt for _ in range(24 if token == 4 else 1)]


def test_contextual_tokens_are_made_of_the_patches_named():
    generator = torch.Generator().manual_seed(0)
    hidden, metric = torch.eye(33).unsqueeze(0), torch.randn(1, 33, 8, generator=generator)
    score = torch.rand(1, 32, generator=generator)
    traces = Traces()
    encoded, unit = Encoded(hidden[0], score[0], metric[0]), Unit(4, 8, 6, 3, 4)
    traces.add_items(torch.tensor([[5, 0, 336, 336]]), [[unit]], encoded, has_cls=True, in_place=False)
    (image,) = traces.take(5)["images"][0]
    tokens, _, _ = select_and_merge(hidden, score, metric, [unit.counts])
    assert tokens[1:6].argmax(dim=1).tolist() == [1 + patch for patch in image["dominant"]]
    for token, (anchor, *members) in zip(tokens[6:], image["contextual"], strict=True):
        assert token[1 + anchor] == 1
        assert token.nonzero()[:, 0].tolist() == sorted(1 + patch for patch in (anchor, *members))


def test_the_oldest_trace_is_dropped_first():
    plan = make_plan(make_layout(8, [(1, 5)]), [0.0], ())
    traces = Traces()
    for trace_id in range(1, MAX_TRACES + 3):
        layout = StepLayout([replace(plan, trace_id=trace_id)], torch.zeros(1).numpy(), torch.tensor([8]).numpy(), 2)
        traces.add_boundary(layout, 1, torch.tensor([0, 5, 6, 7]), None)
    assert traces.take(2) is None
    assert traces.take(3) == {"images": {}, "segments": {1: {"rows": [0, 5, 6, 7], "scores": []}}}
