from __future__ import annotations

from benchmarks.model import LLAVA_7B
from benchmarks.serving.capacity import EqualMemory
from benchmarks.serving.limits import RequestCost
from duet_server.plan import presets

SHAPE = LLAVA_7B.shape


def request(mode):
    return RequestCost(SHAPE, presets(SHAPE)[mode], num_text=64, num_output=16)


def test_the_same_memory_holds_more_requests_by_what_their_segments_hold():
    # 656 tokens are 41 blocks of 32 layers, 10 requests; duet-server's blocks are for 8 layers, so four times as many.
    memory = EqualMemory(stock=(411, 16), duet=(4 * 411, 16))
    # 181, 130 and 79 tokens: 2 * 12 + 9 + 5 of 1643 blocks. As text, 143 tokens: 9 of 410.
    assert memory.fits(request("aggressive"), request("off")) == {"stock": 10, "duet": 43, "text": 45}
    assert memory.fits(request("off"), request("off")) == {"stock": 10, "duet": 10, "text": 10}
