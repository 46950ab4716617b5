"""The engine against the independent Hugging Face implementation, with random settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.engine.in_process import IMAGE_TOKEN_ID, Ask, in_process_engine, noise_picture, text_ids
from tests.golden_cases import NUM_PATCHES, checkpoint_path
from tests.oracle.modeling import DuetLlava

BOUNDARIES = (2, 4, 7)  # not the default ones: segments of 2, 2, 3 and 1 layers
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
MIN_MARGIN = 1e-3  # below it, float32 rounding may decide which logit is larger


@pytest.fixture(scope="module", params=["llava_gqa"])
def checkpoint(request):
    return checkpoint_path(request.param)


@pytest.fixture(scope="module")
def engine(checkpoint):
    boundaries = {"duet": {"boundaries": list(BOUNDARIES)}}
    with in_process_engine(checkpoint, additional_config=boundaries, enable_prefix_caching=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(checkpoint):
    return DuetLlava.from_pretrained(checkpoint)


def random_ask(seed: int) -> Ask:
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 4))
    input_ids = [1, *text_ids(seed, int(rng.integers(0, 10)))]
    for idx in range(num_images):
        is_adjacent = idx > 0 and rng.random() < 0.3
        between = [] if is_adjacent else text_ids(seed + idx, int(rng.integers(1, 12)))
        input_ids += [*between, IMAGE_TOKEN_ID]
    input_ids += text_ids(seed + 9, int(rng.integers(1, 40)))
    stage1 = None
    if rng.random() < 0.8:
        dominant = int(rng.integers(1, 100))
        contextual = int(rng.integers(0, min(20, NUM_PATCHES - dominant + 1)))
        stage1 = (dominant, contextual, int(rng.choice([0, 1, 2, 4, 12])))
    keep = sorted((float(rng.choice([0.0, 0.1, 0.25, 0.33, 0.5, 0.9, 1.0])) for _ in BOUNDARIES), reverse=True)
    images = [noise_picture(seed * 10 + idx) for idx in range(num_images)]
    return Ask(input_ids, images, stage1, keep, str(rng.choice(["all", "last"])), max_tokens=6)


def oracle_tokens(oracle: DuetLlava, ask: Ask) -> list[int]:
    """Greedy tokens up to the first token that float32 rounding could change."""
    pixels = [torch.tensor((np.asarray(image) / 255 - MEAN) / STD).permute(2, 0, 1).float() for image in ask.images]
    dominant, contextual, width = ask.stage1 or (None, 0, 4)
    result = oracle.generate(
        torch.tensor(ask.input_ids),
        pixels,
        max_new_tokens=ask.max_tokens,
        dominant=dominant,
        contextual=contextual,
        cluster_width=width or None,
        boundaries=BOUNDARIES,
        keep=ask.keep,
        guiding_rows=ask.guide,
    )
    margins = -result.logits.topk(2).values.diff().squeeze(1)
    is_close = (margins < MIN_MARGIN).nonzero()
    return result.tokens[: int(is_close[0]) if len(is_close) else None]


def test_random_settings_give_the_oracles_tokens(engine, oracle):
    asks = [random_ask(seed) for seed in range(60)]
    served = engine.tokens(*asks)
    num_compared = 0
    for seed, (ask, tokens) in enumerate(zip(asks, served, strict=True)):
        expected = oracle_tokens(oracle, ask)
        assert tokens[: len(expected)] == expected, (seed, ask.stage1, ask.keep, ask.guide)
        num_compared += len(expected)
    assert num_compared > 0.9 * sum(ask.max_tokens for ask in asks)
