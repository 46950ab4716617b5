"""The oracles of LLaVA, LLaVA-NeXT and InternVL against stock transformers, on tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.checkpoints import internvl, llava, llava_next
from tests.oracle.families import InternVLOracle, LlavaOracle
from tests.oracle.general import Oracle
from tests.oracle.tiles import LlavaNextOracle

MIN_MARGIN = 1e-3  # between the best two logits; below it, float32 rounding could change a greedy token
MAX_BYTES = 3_000_000  # of a checkpoint
NUM_TOKENS = 6


@dataclass(frozen=True)
class Tiny:
    """How to write a checkpoint, its oracle, and pictures for it (width, height)."""

    write: Callable[[Path], Path]
    oracle: type[Oracle]
    image_token: str
    sizes: tuple[tuple[int, int], tuple[int, int]]


def llava_with(tower: str, decoder: str) -> Tiny:
    return Tiny(lambda path: llava.write_llava(path, tower, decoder), LlavaOracle, "<image>", ((112, 112), (150, 130)))


def llava_next_with(decoder: str) -> Tiny:
    """Two tiles side by side, padded above and below; three tiles one above the other."""
    return Tiny(
        lambda path: llava_next.write_llava_next(path, decoder), LlavaNextOracle, "<image>", ((120, 40), (56, 168))
    )


def internvl_with(decoder: str, *, use_qk_norm: bool) -> Tiny:
    """One tile; four tiles and a small view of the whole picture."""
    return Tiny(
        lambda path: internvl.write_internvl(path, decoder, use_qk_norm=use_qk_norm),
        InternVLOracle,
        "<IMG_CONTEXT>",
        ((100, 100), (230, 220)),
    )


TINY = {
    **{f"llava {tower} {decoder}": llava_with(tower, decoder) for tower in llava.TOWERS for decoder in llava.DECODERS},
    "llava_next mistral": llava_next_with("mistral"),
    "llava_next llama": llava_next_with("llama"),
    "internvl qwen2": internvl_with("qwen2", use_qk_norm=True),
    "internvl qwen3": internvl_with("qwen3", use_qk_norm=False),
}


@dataclass(frozen=True)
class Loaded:
    tiny: Tiny
    checkpoint: Path
    oracle: Oracle


@pytest.fixture(scope="module", params=TINY)
def loaded(request, tmp_path_factory) -> Loaded:
    tiny = TINY[request.param]
    checkpoint = tiny.write(tmp_path_factory.mktemp("checkpoint"))
    return Loaded(tiny, checkpoint, tiny.oracle(checkpoint))


def pictures_of(tiny: Tiny) -> list[Image.Image]:
    """Pictures of noise."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in tiny.sizes]


def prompt_of(tiny: Tiny) -> str:
    return f"Look: {tiny.image_token} and {tiny.image_token}\nWhat differs?"


def ids_of(loaded: Loaded) -> list[int]:
    """The prompt with one image token for each picture."""
    return loaded.oracle.processor.tokenizer(prompt_of(loaded.tiny)).input_ids


def test_a_checkpoint_is_small(loaded: Loaded):
    assert sum(file.stat().st_size for file in loaded.checkpoint.iterdir()) < MAX_BYTES


@pytest.mark.parametrize("with_pictures", [True, False], ids=["pictures", "text"])
def test_off_equals_stock(loaded: Loaded, with_pictures: bool):
    oracle, images = loaded.oracle, pictures_of(loaded.tiny) if with_pictures else []
    prompt = prompt_of(loaded.tiny) if with_pictures else "What now?"
    inputs = oracle.processor(images=images or None, text=prompt, return_tensors="pt")
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "eos_token_id": -1, "return_dict_in_generate": True}
    stock = oracle.model.generate(**inputs, **options, output_logits=True)
    generated = oracle.generate(oracle.processor.tokenizer(prompt).input_ids, images, max_new_tokens=NUM_TOKENS)

    assert generated.num_prompt == inputs["input_ids"].shape[1]
    assert generated.logits.topk(2).values.diff().abs().min() > MIN_MARGIN
    assert generated.tokens == stock.sequences[0, generated.num_prompt :].tolist()
    torch.testing.assert_close(generated.logits, torch.cat(stock.logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("guide", ["all", "last"])
def test_keeping_all_rows_at_the_boundaries_equals_off(loaded: Loaded, guide: str):
    off, kept = (
        loaded.oracle.generate(ids_of(loaded), pictures_of(loaded.tiny), max_new_tokens=2, **options)
        for options in ({}, {"boundaries": (4, 6), "keep": (1.0, 1.0), "guide": guide})
    )

    assert kept.kept_rows == [list(range(off.num_prompt))] * 2
    torch.testing.assert_close(kept.logits, off.logits, atol=1e-5, rtol=0)


def test_a_cut_prompt_holds_the_rows_that_stay(loaded: Loaded):
    """Of every unit 8 rows, of every picture's rows half."""
    ids, images = ids_of(loaded), pictures_of(loaded.tiny)
    cut = loaded.oracle.generate(
        ids, images, counts=lambda num_tokens: (6, 2, 2), boundaries=(5,), keep=(0.5,), max_new_tokens=2
    )
    num_text = len(ids) - len(images) + len(images) * sum(map(len, loaded.oracle.around_image))

    assert {len(places) for places in cut.places} == {8}
    assert cut.num_prompt == num_text + 8 * len(cut.places)
    assert len(cut.kept_rows[0]) == num_text + 4 * len(cut.places)


def attention_weights(oracle: Oracle, image: Image.Image) -> tuple[Tensor, ...]:
    """Each layer's attention weights of transformers' own tower, ``[units, heads, rows, rows]``."""
    tower = oracle.model.model.vision_tower
    pixels = oracle.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    return tower(pixels.flatten(0, -4), output_attentions=True).attentions


@torch.inference_mode()
def test_scores_of_the_tower_are_those_of_its_attention_weights(loaded: Loaded):
    oracle, image = loaded.oracle, pictures_of(loaded.tiny)[1]
    if isinstance(oracle, InternVLOracle):
        side = internvl.SIDE
        of_patches = attention_weights(oracle, image)[-1][:, :, 0, 1:].sum(dim=1).view(-1, side, side, 1)
        expected = oracle.model.model.pixel_shuffle(of_patches, scale_factor=0.5).mean(dim=-1).flatten(1)
        units = oracle.encode(image)
    elif isinstance(oracle, LlavaNextOracle):
        expected, units = attention_weights(oracle, image)[-2][:, :, 0, 1:].sum(dim=1), oracle.views(image)
    else:
        weights, (unit,) = attention_weights(oracle, image)[-2], oracle.encode(image)
        expected = weights.mean(dim=1).sum(dim=1) if unit.cls is None else weights[:, :, 0, 1:].sum(dim=1)
        units = [unit]

    torch.testing.assert_close(torch.stack([unit.score for unit in units]), expected, atol=1e-5, rtol=0)
