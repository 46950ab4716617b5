from __future__ import annotations

from benchmarks.models import LLAVA_7B
from benchmarks.serving.capacity import EqualMemory
from benchmarks.serving.limits import RequestCost
from duet_server.plan import presets

SHAPE = LLAVA_7B.shape


def request(mode):
    return RequestCost(SHAPE, presets(SHAPE)[mode], num_text=64, num_output=16)


def test_requests_that_fit_follow_from_the_tokens_of_their_segments():
    # 656 tokens take 41 blocks of 32 layers: 10 requests. duet-server's blocks have 8 layers: 4 times as many.
    memory = EqualMemory(stock=(411, 16), duet=(4 * 411, 16))
    # 181, 130 and 79 tokens take 2 * 12 + 9 + 5 of 1643 blocks. As text, 143 tokens take 9 of 410.
    assert memory.fits(request("aggressive"), request("off")) == {"stock": 10, "duet": 43, "text": 45}
    assert memory.fits(request("off"), request("off")) == {"stock": 10, "duet": 10, "text": 10}
