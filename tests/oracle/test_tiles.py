"""The oracle of LLaVA-NeXT against the authors' numbers."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaNextImageProcessorPil

from tests.golden_next import CHECKPOINT, GoldenNextCase
from tests.oracle.families import seen_by
from tests.oracle.general import Generated, choose
from tests.oracle.tiles import LlavaNextOracle

CASES = GoldenNextCase.all()
CUT = [case for case in CASES if case.stage1]
DROPPING = [case for case in CASES if case.keep]


@cache
def oracle() -> LlavaNextOracle:
    """With the image processor whose pixels equal the authors' to the bit; the default one resamples differently."""
    oracle = LlavaNextOracle(CHECKPOINT)
    oracle.processor.image_processor = LlavaNextImageProcessorPil.from_pretrained(CHECKPOINT)
    return oracle


def pictures_of(case: GoldenNextCase) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in case.picture_paths]


@cache
def run(case: GoldenNextCase) -> tuple[Generated, Tensor, list[Tensor]]:
    """What was generated, what entered the decoder, and each boundary's attention ``[rows, rows]``, mean over heads."""
    layers, boundaries = oracle().decoder.layers, case.fields["layers"] or ()
    with ExitStack() as stack:
        first = stack.enter_context(seen_by(layers[0]))
        attended = [stack.enter_context(seen_by(layers[layer_idx].self_attn)) for layer_idx in boundaries]
        generated = oracle().generate(
            case.fields["prompt_token_ids"],
            pictures_of(case),
            counts=lambda num_tokens: case.stage1,
            boundaries=boundaries,
            keep=case.fields["keep"] or (),
            max_new_tokens=len(case.tokens),
        )
        return generated, first[0][0][0][0], [calls[0][2][1][0].mean(dim=0) for calls in attended]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_and_logits_equal_the_authors_code(case: GoldenNextCase):
    generated, _, _ = run(case)

    assert generated.tokens == case.tokens
    assert generated.num_prompt == case.fields["prefill_len"]
    np.testing.assert_allclose(generated.logits, case.arrays["logits"], atol=5e-5, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_enters_the_decoder_equals_the_authors_code(case: GoldenNextCase):
    """Features and their order, newlines and padding included. Of long prompts, every 16th row is known."""
    _, entering, _ = run(case)

    if "projected" in case.arrays:
        np.testing.assert_allclose(entering, case.arrays["projected"], atol=1e-5, rtol=0)
    else:
        np.testing.assert_allclose(entering[::16], case.arrays["projected_every_16th"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CUT, ids=str)
def test_each_view_is_cut_as_by_the_authors_code(case: GoldenNextCase):
    views = [view for picture in pictures_of(case) for view in oracle().views(picture)]
    chosen = [choose(view, case.stage1) for view in views]
    dominant, anchors = case.fields["dominant_patch_indices"], case.fields["anchor_patch_indices"]

    np.testing.assert_allclose(torch.stack([view.score for view in views]), case.arrays["stage1_scores"], atol=1e-5)
    rows = torch.stack([rows for rows, _ in chosen]).detach()
    np.testing.assert_allclose(rows, case.arrays["stage1_features"], atol=2e-5, rtol=0)
    expected = [[-1, *sorted(patches), *merged] for patches, merged in zip(dominant, anchors, strict=True)]
    assert [places for _, places in chosen] == expected
    assert run(case)[0].places == expected


@pytest.mark.parametrize("case", DROPPING, ids=str)
def test_scores_and_rows_that_pass_a_boundary_equal_the_authors_code(case: GoldenNextCase):
    generated, _, attention = run(case)
    start, entering = case.fields["visual_start"], list(range(case.fields["prefill_len"]))

    steps = zip(attention, generated.kept_rows, case.fields["kept_rows_per_stage"], strict=True)
    for boundary, (weights, kept, expected) in enumerate(steps):
        score = case.arrays[f"stage2_scores_{boundary}"]
        end = start + len(score)
        np.testing.assert_allclose(weights[end:, start:end].mean(dim=0), score, atol=1e-6, rtol=0)
        assert kept == [entering[row] for row in expected]
        entering = kept
