from __future__ import annotations

from dataclasses import replace

import pytest

from duet_server.plan import DecoderShape, ModelShape, VisionShape, kv_bytes, kv_token_layers, layer_average
from duet_server.plan import prefill_flops as flops
from tests.plan.shapes import LLAVA_7B, llava

TINY = ModelShape(
    decoder=DecoderShape(
        num_layers=3, hidden_size=8, intermediate_size=10, num_heads=4, num_kv_heads=2, head_dim=3, vocab_size=11
    ),
    vision=VisionShape(
        num_patches=4, has_cls=True, num_layers=2, hidden_size=6, intermediate_size=7, patch_size=2, image_size=4
    ),
    boundaries=(1,),
)


def test_layer_average_weighs_segments_by_their_layers():
    assert layer_average([102, 51, 0], (16, 8, 8)) == 63.75
    assert layer_average([307, 153, 0], (16, 8, 8)) == 191.75
    assert layer_average([576], (32,)) == 576


def test_kv_token_layers():
    assert kv_token_layers([136, 85, 34], (16, 8, 8)) == 16 * 136 + 8 * 85 + 8 * 34
    with pytest.raises(ValueError, match="zip"):
        kv_token_layers([136, 85], (16, 8, 8))


def test_kv_bytes_of_llava_7b_are_half_a_mebibyte_a_token():
    assert kv_bytes(LLAVA_7B, 32, dtype_bytes=2) == 512 * 1024
    assert kv_bytes(TINY, 5, dtype_bytes=4) == 2 * 2 * 3 * 5 * 4


def test_prefill_flops_by_hand():
    tower_layer = 4 * (2 * 5 * 6 * 6) + 2 * (2 * 5 * 5 * 6) + 2 * (2 * 5 * 6 * 7)
    tower = 2 * 4 * (3 * 2 * 2) * 6 + 2 * tower_layer
    projector = 2 * 3 * 6 * 8 + 2 * 3 * 8 * 8

    def decoder_layer(n):
        projections = 2 * n * 8 * (12 + 6 + 6) + 2 * n * 12 * 8
        scores_and_values = sum(2 * 2 * 4 * 3 * (row + 1) for row in range(n))
        return projections + scores_and_values + 3 * (2 * n * 8 * 10)

    decoder = decoder_layer(9) + 2 * decoder_layer(7)
    assert flops(TINY, [9, 7], [4], 3) == tower + projector + decoder + 2 * 8 * 11


def test_without_images_only_the_decoder_is_paid():
    one = flops(TINY, [9, 9], [4], 4) - flops(TINY, [9, 9], [], 0)
    assert flops(TINY, [9, 9], [4, 4], 8) - flops(TINY, [9, 9], [], 0) == 2 * one


def test_prefill_flops_of_llava_7b_are_about_two_a_weight_and_token():
    """The decoder has 6.7e9 weights for 610 tokens, and the tower 0.3e9 for 577."""
    uncompressed = flops(LLAVA_7B, [610, 610, 610], [576], 576)
    assert uncompressed == pytest.approx(2 * 6.5e9 * 610 + 2 * 0.3e9 * 577, rel=0.05)
    assert flops(LLAVA_7B, [136, 85, 34], [576], 102) < 0.25 * uncompressed


def test_dropping_later_or_less_costs_more():
    costs = [flops(LLAVA_7B, segments, [576], 576) for segments in ([610, 322, 34], [610, 610, 34], [610, 610, 610])]
    assert costs == sorted(set(costs))


def test_flops_need_a_length_for_each_segment():
    with pytest.raises(ValueError, match="zip"):
        flops(llava(boundaries=()), [610, 322], [576], 576)


def test_a_tower_with_windows_gates_and_a_merger_by_hand():
    """Two units of 8 and 2 tokens, of 4 patches each; one of two layers sees windows of 6 patches."""
    vision = VisionShape(
        num_patches=None,
        has_cls=False,
        num_layers=2,
        hidden_size=6,
        intermediate_size=7,
        patch_size=2,
        image_size=0,
        patches_per_token=4,
        num_global_layers=1,
        patches_per_window=6,
        frames_per_patch=2,
        is_gated=True,
        projector=((24, 24), (24, 8)),
        projects_all=True,
    )

    def tower(patches):
        layers = 2 * (4 * 2 * patches * 6 * 6 + 3 * 2 * patches * 6 * 7)
        return 2 * patches * (3 * 2 * 2 * 2) * 6 + layers + 2 * 2 * patches * (patches + min(patches, 6)) * 6

    merger = 2 * 10 * 24 * 24 + 2 * 10 * 24 * 8  # of all ten tokens, though five enter
    text = flops(replace(TINY, vision=vision), [9, 7], [], 0)
    assert flops(replace(TINY, vision=vision), [9, 7], [8, 2], 5) == tower(32) + tower(8) + merger + text


def test_layers_behind_the_tower_run_on_what_enters_unless_they_come_first():
    """Five of ten tokens enter. The two layers behind the tower run on five or on ten rows."""
    some = replace(TINY, vision=replace(TINY.vision, projector=((6, 9), (9, 8))))
    every = replace(some, vision=replace(some.vision, projects_all=True))
    per_token = 2 * 6 * 9 + 2 * 9 * 8
    assert flops(every, [9, 7], [8, 2], 5) - flops(some, [9, 7], [8, 2], 5) == (10 - 5) * per_token


def test_a_window_as_large_as_the_unit_is_the_whole_unit():
    vision = replace(TINY.vision, has_cls=False)
    windows = replace(vision, num_global_layers=0, patches_per_window=4)
    costs = [flops(replace(TINY, vision=each), [9, 7], [4, 3], 7) for each in (vision, windows)]
    assert costs[0] == costs[1]
    halves = replace(windows, patches_per_window=2)  # scores and values of two layers, for 4 and 3 rows
    saved = 2 * (2 * 2 * 4 * (4 - 2) * 6) + 2 * (2 * 2 * 3 * (3 - 2) * 6)
    assert costs[0] - flops(replace(TINY, vision=halves), [9, 7], [4, 3], 7) == saved


def test_a_gated_mlp_has_three_matrices():
    gated = replace(TINY, vision=replace(TINY.vision, is_gated=True))
    assert flops(gated, [9, 7], [4], 3) - flops(TINY, [9, 7], [4], 3) == 2 * (2 * 5 * 6 * 7)


def test_units_do_not_attend_to_each_other():
    """Each tile of LLaVA-NeXT, with a class token of its own, costs what an image of LLaVA-1.5 costs."""
    one = flops(LLAVA_7B, [136, 85, 34], [576], 0) - flops(LLAVA_7B, [136, 85, 34], [], 0)
    five = flops(LLAVA_7B, [136, 85, 34], [576] * 5, 0) - flops(LLAVA_7B, [136, 85, 34], [], 0)
    assert five == 5 * one
