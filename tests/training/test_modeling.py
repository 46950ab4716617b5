"""The training model against the authors' numbers, plain transformers and the one-sequence oracle."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from duet_server.plan import CompressionSettings
from duet_training.modeling import IGNORED, NO_ROW, DuetLlava, DuetOutput
from tests.golden_cases import IMAGE_TOKEN_ID, MODEL_NAMES, NUM_PATCHES, GoldenCase, checkpoint_path, golden_cases
from tests.oracle import modeling as oracle

TOLERANCE = 1e-4
OFF = CompressionSettings(None, 0, None, (1.0, 1.0), "all", "off")
SETTINGS = CompressionSettings(20, 6, 4, (0.6, 0.25), "all", "custom")
PAD = 3


@cache
def load(model: str) -> DuetLlava:
    return DuetLlava.from_pretrained(checkpoint_path(model), dtype=torch.float32).eval()


def learning() -> DuetLlava:
    """A new model in which all weights get gradients."""
    return DuetLlava.from_pretrained(checkpoint_path("llava_gqa"), dtype=torch.float32).train()


def settings_of(case: GoldenCase) -> CompressionSettings:
    return CompressionSettings(case.dominant, case.contextual, case.cluster_width, tuple(case.keep), "all", "custom")


@torch.no_grad()
def run_golden(case: GoldenCase) -> tuple[DuetOutput, dict[str, Tensor]]:
    """One forward of the prompt and the authors' tokens except the last; also the projector's and decoder's inputs."""
    model = load(case.model)
    model.boundaries = tuple(case.boundaries)
    ids = torch.tensor([[*case.expanded_token_ids, *case.tokens[:-1]]])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < case.prefill_len, IGNORED)
    guiding = torch.zeros_like(ids, dtype=torch.bool)
    guiding[0, case.guiding_rows] = True
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, module in (
            ("features", model.model.multi_modal_projector),
            ("embeds", model.model.language_model.layers[0]),
        )
    ]
    pixels = torch.as_tensor(case.pixel_values)[None]
    output = model(ids, pixels, labels=labels, guiding=guiding, compression=settings_of(case))
    for hook in hooks:
        hook.remove()
    return output, seen


@pytest.mark.parametrize("case", golden_cases(), ids=str)
def test_golden_cases(case: GoldenCase):
    output, seen = run_golden(case)

    assert output.patches_by_score[0, : case.dominant - 1].tolist() == case.dominant_patch_indices
    held = list(range(case.prefill_len))
    for kept, rows in zip(case.kept_rows_per_stage, output.held_rows[1:], strict=True):
        held = [held[row] for row in kept]
        assert [row for row in rows[0].tolist() if row < case.prefill_len] == held
    np.testing.assert_allclose(seen["features"], case.stage1_features, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(seen["embeds"][0, : case.prefill_len], case.projected, rtol=0, atol=TOLERANCE)
    logits = output.logits[0, -len(case.tokens) :]
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=TOLERANCE)
    assert logits.argmax(dim=-1).tolist() == case.tokens


def batch(model: str, num_entering: int) -> dict[str, Tensor]:
    """One picture and a long text; two separate pictures; text alone. Padded; the last three tokens are learned."""
    generator = torch.Generator().manual_seed(7)
    image = [IMAGE_TOKEN_ID] * num_entering
    prompts = [[1, *image, *range(40, 52)], [1, 30, *image, 31, 32, *image, 33, 34, 35, 36], [1, 20, 21, 22, 23]]
    length = max(map(len, prompts))
    ids = torch.tensor([prompt + [PAD] * (length - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (length - len(prompt)) for prompt in prompts])
    labels = torch.full_like(ids, IGNORED)
    for row, prompt in enumerate(prompts):
        labels[row, len(prompt) - 3 : len(prompt)] = ids[row, len(prompt) - 3 : len(prompt)]
    pixels = torch.randn(3, 3, 168, 168, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_nothing_to_drop_is_plain_llava(model: str):
    duet, inputs = load(model), batch(model, NUM_PATCHES)
    plain = LlavaForConditionalGeneration.from_pretrained(checkpoint_path(model), dtype=torch.float32).eval()
    duet.boundaries = (4, 6)
    with torch.no_grad():
        expected, output = plain(**inputs), duet(**inputs, compression=OFF)

    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    is_real = inputs["attention_mask"].bool()
    torch.testing.assert_close(output.logits[is_real], expected.logits[is_real], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_batch_is_its_samples_alone(model: str):
    """The oracle runs each prompt alone, without padding and with independent code."""
    duet, inputs = load(model), batch(model, SETTINGS.num_entering(NUM_PATCHES))
    duet.boundaries = (3, 6)
    with torch.no_grad():
        output = duet(**inputs, compression=SETTINGS)
    reference = oracle.DuetLlava.from_pretrained(checkpoint_path(model))
    pixels = iter(inputs["pixel_values"])
    is_guide = (inputs["labels"] == IGNORED) & (inputs["input_ids"] != IMAGE_TOKEN_ID)
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        ids = inputs["input_ids"][row, :length]
        images = [next(pixels) for _ in range(row < 2 and row + 1)]
        settings = oracle.DuetSettings(
            20, 6, 4, (3, 6), SETTINGS.keep, guiding_rows=is_guide[row, :length].nonzero().flatten().tolist()
        )
        with torch.no_grad():
            expected = reference.prefill(ids, images, settings)
        for held, rows in zip(output.held_rows, expected.segment_rows, strict=True):
            assert held[row][held[row] != NO_ROW].tolist() == rows
        num_left = len(expected.segment_rows[-1])
        torch.testing.assert_close(output.logits[row, :num_left], expected.row_logits, rtol=0, atol=TOLERANCE)


def test_labels_are_shortened_with_the_sequence():
    duet, inputs = load("llava_gqa"), batch("llava_gqa", SETTINGS.num_entering(NUM_PATCHES))
    duet.boundaries = (4, 6)
    with torch.no_grad():
        output = duet(**inputs, compression=SETTINGS)
    losses = []
    for row, held in enumerate(output.held_rows[-1]):
        rows = held[held != NO_ROW]
        labels, logits = inputs["labels"][row, rows], output.logits[row, : len(rows)]
        picked = labels[1:] != IGNORED
        losses.append(torch.nn.functional.cross_entropy(logits[:-1][picked], labels[1:][picked], reduction="none"))
        assert picked.sum() == 3
    torch.testing.assert_close(output.loss, torch.cat(losses).mean(), rtol=0, atol=1e-5)


def test_answers_never_guide():
    """By default, text with a learned label does not guide, so another answer does not change the choice."""
    duet, inputs = load("llava_mha"), batch("llava_mha", SETTINGS.num_entering(NUM_PATCHES))
    duet.boundaries = (4, 6)
    answers = inputs["labels"] != IGNORED
    with torch.no_grad():
        held = duet(**inputs, compression=SETTINGS).held_rows
        inputs["input_ids"] = inputs["input_ids"].masked_fill(answers, 99)
        for before, after in zip(held, duet(**inputs, compression=SETTINGS).held_rows, strict=True):
            assert before.equal(after)


def test_checkpointing_changes_no_gradient():
    inputs = batch("llava_gqa", SETTINGS.num_entering(NUM_PATCHES))
    gradients = []
    for checkpointing in (False, True):
        model = learning()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**inputs, compression=SETTINGS).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    plain, checkpointed = gradients
    assert sum(gradient is not None for gradient in plain.values()) > 100
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("compression", [OFF, SETTINGS], ids=["off", "compressed"])
def test_checkpointing_leaves_a_frozen_tower_alone(compression: CompressionSettings):
    """Checkpointing makes inputs require gradients, and would run the backward pass of a tower that learns nothing."""
    model = learning()
    model.model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    inputs = batch("llava_gqa", compression.num_entering(NUM_PATCHES))
    model(**inputs, compression=compression).loss.backward()
    assert not tokens[0].requires_grad
    assert model.model.multi_modal_projector.linear_1.weight.grad.any()


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_nothing_to_learn_is_no_loss(num_items: Tensor | int | None):
    model = learning()
    ids = torch.tensor([[PAD]])
    labels = torch.full_like(ids, IGNORED)
    loss = model(ids, labels=labels, compression=SETTINGS, num_items_in_batch=num_items).loss
    loss.backward()
    assert loss == 0
    assert not any(weight.grad.any() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compression": CompressionSettings(20, 6, 4, (0.5,), "all", "custom")}, r"keep is \[0.5\]"),
        ({"compression": CompressionSettings(9, 1, 4, (0.5, 0.0), "all", "custom")}, "has 78 image tokens, but 3"),
        ({"guiding": torch.zeros(3, 65, dtype=torch.bool)}, "no guiding row follows"),
    ],
    ids=["keep", "counts", "guides"],
)
def test_inputs_that_do_not_match_are_refused(change: dict, message: str):
    duet, inputs = load("llava_gqa"), batch("llava_gqa", SETTINGS.num_entering(NUM_PATCHES))
    duet.boundaries = (4, 6)
    with pytest.raises(ValueError, match=message):
        duet(**{**inputs, "compression": SETTINGS, **change})


def test_text_alone_runs_the_tower_too():
    """The processes of a distributed run must call the same modules; the result does not change."""
    model = learning()
    ids = torch.tensor([[1, 20, 21, 22, 23]])
    output = model(ids, labels=ids, compression=SETTINGS)
    torch.testing.assert_close(output.loss, LlavaForConditionalGeneration.forward(model, ids, labels=ids).loss)
    output.loss.backward()
    projector = model.model.multi_modal_projector.linear_1.weight.grad
    assert projector is not None
    assert not projector.any()


def test_image_tokens_need_their_pictures():
    with pytest.raises(ValueError, match="has 1 image tokens, but 0 images"):
        load("llava_gqa")(torch.tensor([[1, IMAGE_TOKEN_ID, 5, 6]]), compression=SETTINGS)


def test_bfloat16_gradients_are_near_those_of_float32():
    """In a case in which rounding cannot change the kept tokens."""
    inputs, gradients = batch("llava_gqa", NUM_PATCHES), []
    settings = dataclasses.replace(OFF, keep=(1.0, 0.0))
    for dtype in (torch.float32, torch.bfloat16):
        model = learning()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(**inputs, compression=settings).loss.backward()
        weights = model.model.language_model.layers[6].self_attn
        gradients.append(torch.cat([weights.q_proj.weight.grad.flatten(), weights.v_proj.weight.grad.flatten()]))
    exact, rounded = gradients
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_checkpoints_are_those_of_llava(tmp_path):
    load("llava_gqa").save_pretrained(tmp_path)
    plain, saved = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert plain.config.architectures == ["LlavaForConditionalGeneration"]
    assert not any(saved[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for weight, expected in zip(plain.parameters(), load("llava_gqa").parameters(), strict=True):
        assert weight.equal(expected)
