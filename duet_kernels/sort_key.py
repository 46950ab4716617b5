"""The order of scores, shared by all kernels that rank them."""

import triton
import triton.language as tl


@triton.jit
def sort_key(score):
    """Integers in the order of the scores. As in torch's sort, both zeros are equal and NaN is above all."""
    score = tl.where(score == 0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(score != score, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
