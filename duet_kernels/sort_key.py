"""The order of scores, for every kernel that ranks them."""

import triton
import triton.language as tl


@triton.jit
def sort_key(score):
    """Integers in the scores' order: both zeros are one and NaN is above all, as torch sorts."""
    score = tl.where(score == 0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score != score, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
