"""Gradients through both stages against finite differences on a tiny model."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from duet_server.plan import CompressionSettings
from duet_training.modeling import IGNORED, DuetLlava, DuetOutput

IMAGE, NUM_PATCHES, NUM_ENTERING = 9, 16, 7
SETTINGS = CompressionSettings(4, 3, 2, (0.6, 0.3), "all", "custom")
STEP = 1e-3  # norms, merges and the loss are computed in float32 for weights of any dtype


@pytest.fixture(scope="module")
def model() -> DuetLlava:
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=2
    )
    text = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=10, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(2)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    model = DuetLlava(config).double().train()
    for weight in model.model.vision_tower.parameters():  # STEP would be too large for CLIP's small initial weights
        torch.nn.init.normal_(weight, std=0.3)
    model.boundaries = (1, 3)
    return model


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """Two samples of different lengths with a picture each."""
    image = [IMAGE] * NUM_ENTERING
    ids = torch.tensor([[1, *image, 2, 3, 4, 5, 6], [1, 2, *image, 3, 4, 0, 0]])
    mask = torch.tensor([[1] * 13, [1] * 11 + [0] * 2])
    labels = ids.masked_fill(torch.arange(13) < 10, IGNORED).masked_fill(mask == 0, IGNORED)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


def test_gradients_are_slopes(model: DuetLlava, inputs: dict[str, torch.Tensor]):
    """Slopes along the gradient, for every used weight and for the pixels; the choice of tokens is a constant."""
    pixels = inputs["pixel_values"].clone().requires_grad_()
    output = model(**{**inputs, "pixel_values": pixels}, compression=SETTINGS)
    assert [int((rows >= 0).sum()) for rows in output.held_rows] == [24, 18, 14]
    output.loss.backward()
    used = {name: weight for name, weight in model.named_parameters() if weight.grad is not None}
    assert any("vision_tower.encoder.layers.1" in name for name in used)
    tensors = [(name, weight.data, weight.grad) for name, weight in used.items()]
    for name, tensor, gradient in [*tensors, ("pixel_values", inputs["pixel_values"], pixels.grad)]:
        if gradient.norm() < 1e-4:  # biases of keys shift all logits of a query equally
            assert name.endswith("k_proj.bias"), name
            continue
        ahead, behind = (_output_at(model, inputs, tensor, step * gradient / gradient.norm()) for step in (STEP, -STEP))
        for kept in (ahead, behind):
            assert all(a.equal(b) for a, b in zip(kept.held_rows, output.held_rows, strict=True)), name
        slope = (ahead.loss - behind.loss).double() / (2 * STEP)
        torch.testing.assert_close(slope, gradient.norm(), rtol=0.02, atol=1e-3, msg=lambda text, n=name: f"{n} {text}")


@torch.no_grad()
def _output_at(
    model: DuetLlava, inputs: dict[str, torch.Tensor], tensor: torch.Tensor, change: torch.Tensor
) -> DuetOutput:
    before = tensor.clone()
    tensor += change
    try:
        return model(**inputs, compression=SETTINGS)
    finally:
        tensor.copy_(before)
