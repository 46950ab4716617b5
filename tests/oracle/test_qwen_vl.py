"""The oracle of the Qwen family against the authors' numbers, and, with compression off, against stock Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.checkpoints.qwen_vl import IMAGE_TOKEN_ID, NAMES, write_qwen_vl
from tests.golden_qwen import CHECKPOINT, GoldenQwenCase
from tests.oracle.families import Qwen25Oracle, QwenOracle, seen_by
from tests.oracle.general import Encoded, Generated, choose

MIN_MARGIN = 1e-3  # between the best two logits; below it, float32 rounding could change a greedy token
NUM_TOKENS = 6
CASES = GoldenQwenCase.all()
COMPRESSED = [case for case in CASES if case.has_stage1]
DROPPING = [case for case in CASES if case.kept_rows]


@pytest.fixture(scope="module")
def golden() -> Qwen25Oracle:
    return Qwen25Oracle(CHECKPOINT)


def picture_of(case: GoldenQwenCase) -> Image.Image:
    return Image.open(case.picture_path).convert("RGB")


def generate(oracle: QwenOracle, case: GoldenQwenCase, max_new_tokens: int) -> Generated:
    return oracle.generate(
        case.fields["prompt_token_ids"],
        [picture_of(case)],
        counts=lambda num_tokens: case.stage1,
        boundaries=case.fields["layers"] or (),
        keep=case.fields["keep"] or (),
        max_new_tokens=max_new_tokens,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_and_logits_equal_the_authors_code(golden: Qwen25Oracle, case: GoldenQwenCase):
    generated = generate(golden, case, len(case.tokens))

    assert generated.tokens == case.tokens
    assert generated.num_prompt == case.fields["prefill_len"]
    np.testing.assert_allclose(generated.logits, case.arrays["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_enters_the_decoder_equals_the_authors_code(golden: Qwen25Oracle, case: GoldenQwenCase):
    with seen_by(golden.decoder.layers[0]) as layer, seen_by(golden.decoder.rotary_emb) as rotary:
        generated = generate(golden, case, max_new_tokens=2)
    hidden, positions = layer[0][0][0][0], [args[1][:, 0] for args, _, _ in rotary]

    np.testing.assert_allclose(hidden, case.arrays["projected"], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(positions[0], case.arrays["position_ids"])
    assert positions[-1][:, -1].tolist() == [case.fields["first_decode_position"]] * 3
    assert generated.places == [case.fields.get("kept_indices", list(range(case.fields["visual_tokens"])))]


@pytest.mark.parametrize("case", COMPRESSED, ids=str)
def test_scores_and_metric_of_the_tower_equal_the_authors_code(golden: Qwen25Oracle, case: GoldenQwenCase):
    with torch.inference_mode():
        (unit,) = golden.encode(picture_of(case))

    np.testing.assert_allclose(unit.rows, case.arrays["merged"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(unit.score, case.arrays["stage1_scores"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(unit.metric, case.arrays["stage1_keys"], atol=1e-5, rtol=0)
    num_dominant = case.fields["dominant"]
    assert unit.score.argsort(descending=True)[:num_dominant].tolist() == case.fields["dominant_indices"]


@pytest.mark.parametrize("case", DROPPING, ids=str)
def test_rows_that_pass_a_boundary_equal_the_authors_code(golden: Qwen25Oracle, case: GoldenQwenCase):
    generated, entering = generate(golden, case, max_new_tokens=1), list(range(case.fields["prefill_len"]))

    for kept, expected in zip(generated.kept_rows, case.kept_rows, strict=True):
        assert kept == [entering[row] for row in expected]
        entering = kept


@pytest.mark.parametrize("case", DROPPING, ids=str)
def test_causal_scores_at_a_boundary(golden: Qwen25Oracle, case: GoldenQwenCase):
    """The mean that ranks a pool, from the attention of the layer behind the boundary."""
    start = case.fields["visual_start"]
    for boundary, layer_idx in enumerate(case.fields["layers"]):
        with seen_by(golden.decoder.layers[layer_idx].self_attn) as attended:
            generate(golden, case, max_new_tokens=1)
        expected = case.arrays[f"stage2_scores_{boundary}_causal"]
        end = start + len(expected)
        attention = attended[0][2][1][0].mean(dim=0)  # [rows, rows]

        np.testing.assert_allclose(attention[end:, start:end].mean(dim=0), expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module", params=NAMES)
def tiny(request, tmp_path_factory) -> QwenOracle:
    oracle = Qwen25Oracle if request.param == "qwen2_5_vl" else QwenOracle
    return oracle(write_qwen_vl(tmp_path_factory.mktemp("checkpoint"), request.param))


IDS = [1, 40, 3, IMAGE_TOKEN_ID, 4, 60, 61, 3, IMAGE_TOKEN_ID, 4, 70, 71, 72]
TOUCHING = [1, 40, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, 70, 71, 72]  # stock Hugging Face takes it for one picture
SIZES = ((112, 140), (196, 84))


def pictures() -> list[Image.Image]:
    """Two of noise, of different shapes: 20 and 21 tokens."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in SIZES]


def stock_inputs(oracle: QwenOracle, input_ids: Sequence[int]) -> dict[str, Tensor]:
    """A prompt as stock models take it: one image token for each token of a picture."""
    inputs = oracle.processor.image_processor(images=pictures(), return_tensors="pt")
    num_tokens = iter((inputs["image_grid_thw"].prod(dim=1) // 4).tolist())
    repeats = torch.tensor([next(num_tokens) if token == IMAGE_TOKEN_ID else 1 for token in input_ids])
    ids = torch.tensor([input_ids]).repeat_interleave(repeats, dim=1)
    return {**inputs, "input_ids": ids, "mm_token_type_ids": (ids == IMAGE_TOKEN_ID).int()}


@pytest.mark.parametrize("input_ids", [IDS, [1, 40, 41]], ids=["pictures", "text"])
def test_off_equals_stock(tiny: QwenOracle, input_ids: list[int]):
    images = pictures() if IMAGE_TOKEN_ID in input_ids else []
    inputs: dict[str, Any] = stock_inputs(tiny, input_ids) if images else {"input_ids": torch.tensor([input_ids])}
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "eos_token_id": -1, "return_dict_in_generate": True}
    stock = tiny.model.generate(**inputs, **options, output_logits=True)
    generated = tiny.generate(input_ids, images, max_new_tokens=NUM_TOKENS)

    assert generated.logits.topk(2).values.diff().abs().min() > MIN_MARGIN
    assert generated.tokens == stock.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    torch.testing.assert_close(generated.logits, torch.cat(stock.logits), atol=1e-4, rtol=0)


def test_positions_equal_stocks(tiny: QwenOracle):
    inputs = stock_inputs(tiny, IDS)
    inputs.pop("pixel_values")
    with seen_by(tiny.decoder.rotary_emb) as rotary:
        tiny.generate(IDS, pictures(), max_new_tokens=1)

    assert torch.equal(rotary[0][0][1], tiny.model.model.get_rope_index(**inputs)[0])


def test_keeping_everything_equals_off(tiny: QwenOracle):
    off = tiny.generate(IDS, pictures(), max_new_tokens=2)
    kept = tiny.generate(
        IDS,
        pictures(),
        counts=lambda num_tokens: (num_tokens - 2, 2, 1),
        boundaries=(4, 6),
        keep=(1.0, 1.0),
        max_new_tokens=2,
    )

    assert kept.places == off.places
    assert kept.kept_rows == [list(range(off.num_prompt))] * 2
    torch.testing.assert_close(kept.logits, off.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guide", ["all", "last"])
def test_pools_have_their_own_share_and_touching_pictures_are_one(tiny: QwenOracle, guide: str):
    """Of 10 and 10 rows, 3 and 3 stay; of 20, 7."""
    options = {"counts": lambda n: (8, 2, 2), "boundaries": (5,), "keep": (0.35,), "guide": guide, "max_new_tokens": 1}
    apart, touching = (tiny.generate(ids, pictures(), **options) for ids in (IDS, TOUCHING))

    assert [sum(start <= row < start + 10 for row in apart.kept_rows[0]) for start in (3, 17)] == [3, 3]
    assert sum(2 <= row < 22 for row in touching.kept_rows[0]) == 7


def test_deepstack_levels_are_cut_with_their_tokens(tmp_path):
    """A row is the token's features and its three levels side by side, all of the same members."""
    oracle = QwenOracle(write_qwen_vl(tmp_path, "qwen3_vl"))
    with torch.inference_mode():
        (unit,) = oracle.encode(pictures()[0])
    rows, places = choose(unit, (8, 2, 2))
    levels = [
        choose(Encoded(level, unit.score, unit.metric, unit.grid), (8, 2, 2))[0]
        for level in unit.rows.split(oracle.decoder.embed_tokens.embedding_dim, dim=1)
    ]

    assert len(levels) == 4
    assert len(places) == 10
    assert torch.equal(rows, torch.cat(levels, dim=1))


# Rows are powers of two, so that a sum shows which rows were added: token 0 is 1, then 2, 4, ...
NORTH, NORTH_EAST, EAST = [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]
UNIT = Encoded(
    rows=2.0 ** torch.arange(6)[:, None],
    score=torch.tensor([0.1, 0.6, 0.2, 0.5, 0.4, 0.3]),
    metric=torch.tensor([NORTH, NORTH, EAST, NORTH, NORTH_EAST, EAST]),
    grid=(2, 3),
)


@pytest.mark.parametrize(
    ("counts", "places", "rows"),
    [
        (None, [0, 1, 2, 3, 4, 5], [1, 2, 4, 8, 16, 32]),
        ((2, 0, 4), [1, 3], [2, 8]),
        ((1, 1, 2), [1, 3], [2, 8 + 16]),  # the pool is tokens 3 and 4
        ((2, 2, 2), [1, 2, 3, 4], [2, 4 + 32, 8, 16 + 1]),  # pool 4, 5, 2, 0; anchors 4 and 2
        ((2, 2, 0), [0, 1, 3, 4], [1, 2, 8, 16 + (4 + 32) / 2]),  # pool 0, 2, 4, 5 by place; anchors 0 and 4
        ((4, 2, 4), [0, 1, 2, 3, 4, 5], [1, 2, 4, 8, 16, 32]),
    ],
    ids=["whole", "dominant_alone", "width_limits_the_pool", "contextual", "no_limit", "all_tokens"],
)
def test_a_picture_worked_out_by_hand(counts: tuple[int, int, int] | None, places: list[int], rows: list[float]):
    chosen, found = choose(UNIT, counts)

    assert found == places
    assert chosen.flatten().tolist() == rows
