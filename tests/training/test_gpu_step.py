"""One training step on a GPU against the same step on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.golden_cases import NUM_PATCHES
from tests.training.test_modeling import SETTINGS, batch, learning

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def step(device: str) -> tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor]]:
    """Loss, held rows, and every weight after a step of AdamW."""
    model = learning().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)  # far above the noise of small gradients
    inputs = batch("llava_gqa", SETTINGS.num_entering(NUM_PATCHES))
    output = model(**{name: tensor.to(device) for name, tensor in inputs.items()}, compression=SETTINGS)
    output.loss.backward()
    optimizer.step()
    weights = {name: weight.detach().cpu() for name, weight in model.named_parameters()}
    return output.loss.detach().cpu(), tuple(rows.cpu() for rows in output.held_rows), weights


def test_a_step_on_a_gpu_equals_one_on_the_cpu():
    (loss, held, weights), (expected_loss, expected_held, expected) = step("cuda"), step("cpu")
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    assert all(rows.equal(expected_rows) for rows, expected_rows in zip(held, expected_held, strict=True))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n} {text}")
