from __future__ import annotations

import pytest

from benchmarks.models import LLAVA_7B, SMALL
from benchmarks.serving.limits import BlockPool, RequestCost
from duet_server.plan import prefill_flops, presets

SHAPE = SMALL.shape


def request(mode, num_output=8):
    return RequestCost(SHAPE, presets(SHAPE)[mode], num_text=64, num_output=num_output)


def test_segments_hold_their_visual_tokens_and_the_text():
    assert request("off").segment_tokens == (640, 640, 640)
    assert request("aggressive").segment_tokens == (102 + 64, 51 + 64, 64)


def test_a_text_prompt_is_as_long_as_the_layer_average():
    assert request("aggressive").layer_average == (102 * 6 + 51 * 3) / 12
    assert request("aggressive").text_prompt_tokens() == 64 + 64


def test_one_output_token_costs_the_prefill():
    assert request("light", num_output=1).request_flops == request("light").prefill_flops


def test_decoded_tokens_cost_as_much_as_prompt_tokens():
    longer = RequestCost(SHAPE, presets(SHAPE)["light"], num_text=64 + 7, num_output=1)
    head = 7 * 2 * SHAPE.decoder.hidden_size * SHAPE.decoder.vocab_size
    assert request("light").request_flops == longer.prefill_flops + head


@pytest.mark.parametrize(("model", "share"), [(SMALL, 0.046), (LLAVA_7B, 0.042)], ids=["small", "7b"])
def test_the_small_models_tower_takes_about_the_share_of_the_large_ones(model, share):
    tower = prefill_flops(model.shape, (0, 0, 0), [576], 0)
    assert tower / prefill_flops(model.shape, (640, 640, 640), [576], 576) == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize(
    ("segment_tokens", "segment_layers", "layers_per_block", "blocks"),
    [
        ((640,), (12,), 12, 21),  # 647 tokens are held
        ((166, 115, 64), (6, 3, 3), 3, 2 * 6 + 4 + 3),  # 173, 122 and 71 are held
        ((25, 25, 25), (6, 3, 3), 3, 4),  # 32 are held: the block is full
    ],
)
def test_requests_that_fit_into_a_block_pool(segment_tokens, segment_layers, layers_per_block, blocks):
    exact = BlockPool(1 + 5 * blocks, 32, layers_per_block)
    assert exact.num_requests(segment_tokens, segment_layers, num_output=8) == 5
    short = BlockPool(5 * blocks, 32, layers_per_block)
    assert short.num_requests(segment_tokens, segment_layers, num_output=8) == 4
