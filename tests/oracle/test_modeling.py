"""The reference model against the authors' code, against stock Hugging Face, and against itself."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tests.golden_cases import (
    IMAGE_TOKEN_ID,
    MODEL_NAMES,
    NUM_PATCHES,
    GoldenCase,
    checkpoint_path,
    golden_cases,
)
from tests.oracle.modeling import DuetLlava, DuetSettings

BOS, NEWLINE = 1, 203
TOLERANCE = 1e-4


@cache
def load(model: str) -> DuetLlava:
    return DuetLlava.from_pretrained(checkpoint_path(model))


@cache
def load_stock(model: str) -> LlavaForConditionalGeneration:
    """Load the stock model with eager attention, which returns its attention weights."""
    return LlavaForConditionalGeneration.from_pretrained(checkpoint_path(model), attn_implementation="eager").eval()


def settings_of(case: GoldenCase) -> dict:
    stage1 = {"dominant": case.dominant, "contextual": case.contextual, "cluster_width": case.cluster_width}
    return {**stage1, "boundaries": case.boundaries, "keep": case.keep, "guiding_rows": case.guiding_rows}


def pictures(model: str, count: int) -> Tensor:
    return torch.stack([torch.as_tensor(case.pixel_values) for case in golden_cases(model)[:count]])


SEPARATED = [BOS, 57, 55, 41, IMAGE_TOKEN_ID, NEWLINE, 41, 54, 30, IMAGE_TOKEN_ID, NEWLINE, 59, 76, 73, 86]
ADJACENT = [BOS, 57, 55, 41, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, NEWLINE, 41, 54, 30, 59, 76]


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_published_weight_names_all_load(model: str):
    _, loading = LlavaForConditionalGeneration.from_pretrained(checkpoint_path(model), output_loading_info=True)

    assert not any(loading.values()), loading


@pytest.mark.parametrize("case", golden_cases(), ids=str)
def test_equals_the_authors_code(case: GoldenCase):
    output = load(case.model).generate(
        case.prompt_token_ids, [case.pixel_values], len(case.tokens), **settings_of(case)
    )

    assert output.dominant_patch_indices == [case.dominant_patch_indices]
    assert output.kept_rows_per_stage == case.kept_rows_per_stage
    assert output.kv_lens_per_layer == case.kv_lens_per_layer
    assert output.tokens == case.tokens
    np.testing.assert_allclose(output.stage1_features[0], case.stage1_features, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(output.projected, case.projected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(output.logits, case.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", [case for case in golden_cases() if case.salient_prompt_indices is None], ids=str)
def test_all_text_after_the_image_is_the_default_guide(case: GoldenCase):
    settings = {**settings_of(case), "guiding_rows": "all"}
    prefill = load(case.model).prefill(case.prompt_token_ids, [case.pixel_values], DuetSettings(**settings))

    assert prefill.kept_rows_per_stage == case.kept_rows_per_stage


@torch.no_grad()
def test_expanded_prompt_means_the_same():
    case = golden_cases("llava_gqa")[0]
    prefill = load(case.model).prefill(case.expanded_token_ids, [case.pixel_values], DuetSettings(**settings_of(case)))

    np.testing.assert_allclose(prefill.projected, case.projected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize(
    "settings",
    [DuetSettings(), DuetSettings(boundaries=[4, 6], keep=[1.0, 1.0])],
    ids=["no_boundaries", "keeps_everything"],
)
@torch.no_grad()
def test_off_equals_stock(model: str, settings: DuetSettings):
    prefill = load(model).prefill(SEPARATED, pictures(model, 2), settings)
    stock = load_stock(model)(input_ids=expanded(SEPARATED), pixel_values=pictures(model, 2))

    torch.testing.assert_close(prefill.row_logits, stock.logits[0], rtol=0, atol=TOLERANCE)
    assert prefill.dominant_patch_indices == [[], []]
    assert set(prefill.kv_lens_per_layer) == {len(SEPARATED) - 2 + 2 * NUM_PATCHES}


@pytest.mark.parametrize("model", MODEL_NAMES)
@torch.no_grad()
def test_text_alone_equals_stock(model: str):
    prompt = [BOS, 41, 54, 30]
    prefill = load(model).prefill(prompt, [], DuetSettings(boundaries=[4], keep=[0.0]))

    torch.testing.assert_close(
        prefill.row_logits, load_stock(model)(input_ids=torch.tensor([prompt])).logits[0], rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("model", MODEL_NAMES)
@torch.no_grad()
def test_dominant_patches_follow_the_towers_own_attention(model: str):
    images = pictures(model, 3)
    prompt = [BOS, *[IMAGE_TOKEN_ID] * 3, NEWLINE]
    prefill = load(model).prefill(prompt, images, DuetSettings(dominant=33, contextual=4))
    tower = load_stock(model).model.vision_tower
    attentions = tower(images, output_attentions=True).attentions[-2]  # [images, heads, rows, rows]

    best = attentions[:, :, 0, 1:].sum(dim=1).topk(32).indices.sort().values
    assert [sorted(patches) for patches in prefill.dominant_patch_indices] == best.tolist()


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("guide", ["all", "last"])
@pytest.mark.parametrize("prompt", [SEPARATED, ADJACENT], ids=["separated", "adjacent"])
@torch.no_grad()
def test_first_drop_follows_the_layers_own_attention(model: str, guide: str, prompt: list[int]):
    boundary, keep = 3, 0.3
    settings = DuetSettings(boundaries=[boundary], keep=[keep], guiding_rows=guide)
    prefill = load(model).prefill(prompt, pictures(model, 2), settings)
    ids = expanded(prompt)
    stock = load_stock(model)(input_ids=ids, pixel_values=pictures(model, 2), output_attentions=True)
    attention = stock.attentions[boundary][0].mean(dim=0)  # [n, n]

    is_visual = ids[0] == IMAGE_TOKEN_ID
    kept = ~is_visual
    num_guides = {"all": None, "last": 1}[guide]
    for start, end in pool_spans(prompt):
        text_after = [row for row in range(end, len(is_visual)) if not is_visual[row]]
        guides = text_after if num_guides is None else text_after[-num_guides:]
        scores = attention[guides, start:end].mean(dim=0)
        kept[start + scores.topk(int((end - start) * keep)).indices] = True
    assert prefill.kept_rows_per_stage == [kept.nonzero().flatten().tolist()]


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize("prompt", [SEPARATED, ADJACENT], ids=["separated", "adjacent"])
def test_decoding_equals_a_longer_prefill(model: str, prompt: list[int]):
    """Selections are causal: text after the guiding rows changes nothing, so decoded tokens can be prompt tokens."""
    num_entering = 20 + 6
    last_row = len(prompt) + 2 * (num_entering - 1) - 1
    settings = {"dominant": 20, "contextual": 6, "boundaries": [2, 5, 6], "keep": [0.7, 0.4, 0.1]}
    settings["guiding_rows"] = [last_row - 1, last_row]
    duet, images = load(model), pictures(model, 2)
    output = duet.generate(prompt, images, 8, **settings)
    assert IMAGE_TOKEN_ID not in output.tokens

    longer = duet.prefill([*prompt, *output.tokens[:-1]], images, DuetSettings(**settings))
    torch.testing.assert_close(longer.row_logits[-8:], output.logits, rtol=0, atol=TOLERANCE)
    assert [len(rows) - 7 for rows in longer.segment_rows] == [len(rows) for rows in output.segment_rows]


def test_each_pool_keeps_its_own_share():
    duet, images = load("llava_gqa"), pictures("llava_gqa", 2)
    settings = DuetSettings(dominant=13, contextual=2, boundaries=[2, 5], keep=[0.5, 0.1])

    # Two pools of 15 visual tokens keep 7 + 7 and 1 + 1; one pool of 30 would keep 15 and 3.
    num_text = len(SEPARATED) - 2
    separated = duet.prefill(SEPARATED, images, settings)
    assert [len(rows) - num_text for rows in separated.segment_rows] == [30, 14, 2]
    num_text = len(ADJACENT) - 2
    adjacent = duet.prefill(ADJACENT, images, settings)
    assert [len(rows) - num_text for rows in adjacent.segment_rows] == [30, 15, 3]


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_gradients_reach_pixels_and_tower(model: str):
    duet, images = DuetLlava.from_pretrained(checkpoint_path(model)), pictures(model, 2).requires_grad_()
    settings = DuetSettings(dominant=20, contextual=10, boundaries=[4, 6], keep=[0.6, 0.3])
    duet.prefill(SEPARATED, images, settings).row_logits.square().mean().backward()

    tower = duet.tower
    num_layers_run = len(tower.encoder.layers) - 1
    for module in [tower.embeddings, *tower.encoder.layers[:num_layers_run], duet.projector, *duet.decoder.layers]:
        assert all(weight.grad.isfinite().all() for weight in module.parameters())
        assert any(weight.grad.abs().max() > 0 for weight in module.parameters())
    assert images.grad.isfinite().all()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


# In other cases, a small step also changes selections; this case's scores are far from every tie.
@pytest.mark.parametrize("case", [case for case in golden_cases() if case.name == "aggressive"], ids=str)
def test_gradient_is_the_slope(case: GoldenCase):
    duet, settings = load(case.model), DuetSettings(**settings_of(case))
    image = torch.as_tensor(case.pixel_values)[None].requires_grad_()

    def loss(pixel_values: Tensor) -> Tensor:
        return duet.prefill(case.prompt_token_ids, pixel_values, settings).row_logits[-1].square().sum()

    (gradient,) = torch.autograd.grad(loss(image), image)
    direction, step = gradient / gradient.norm(), 1e-3
    with torch.no_grad():
        slope = (loss(image + step * direction) - loss(image - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, gradient.norm(), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"boundaries": [4, 6], "keep": [0.5]}, "keep has 1 values for 2 boundaries"),
        ({"boundaries": [4, 6], "keep": [0.5, 0.6]}, "not increase"),
        ({"boundaries": [4], "keep": [1.5]}, r"lie in \[0, 1\]"),
        ({"boundaries": [8], "keep": [0.5]}, r"ascend within \(0, 8\)"),
        ({"boundaries": [6, 4], "keep": [0.5, 0.0]}, r"ascend within \(0, 8\)"),
    ],
    ids=["keep_too_short", "keep_increases", "keep_above_one", "boundary_too_deep", "boundaries_descend"],
)
def test_settings_that_cannot_be_served_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        load("llava_gqa").generate(SEPARATED, pictures("llava_gqa", 2), **settings)


def test_images_must_match_the_prompt():
    with pytest.raises(ValueError, match="2 image tokens for 1 images"):
        load("llava_gqa").generate(SEPARATED, pictures("llava_gqa", 1))


def expanded(prompt: list[int]) -> Tensor:
    """The prompt as stock LLaVA takes it: one image token per patch."""
    repeats = [NUM_PATCHES if token_id == IMAGE_TOKEN_ID else 1 for token_id in prompt]
    return torch.tensor([prompt]).repeat_interleave(torch.tensor(repeats), dim=1)


def pool_spans(prompt: list[int]) -> list[tuple[int, int]]:
    """Visual rows `[start, end)` of the expanded prompt."""
    first = prompt.index(IMAGE_TOKEN_ID)
    if prompt[first + 1] == IMAGE_TOKEN_ID:
        return [(first, first + 2 * NUM_PATCHES)]
    second = prompt.index(IMAGE_TOKEN_ID, first + 1) + NUM_PATCHES - 1
    return [(first, first + NUM_PATCHES), (second, second + NUM_PATCHES)]
