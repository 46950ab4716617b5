"""The operations of DUET's two stages: plain torch, batched over images and requests, one file an operation.

Every function here is a reference: float32 accumulation, ties to the lower index, no loop over tokens or requests,
and no device-to-host copy, on which a GPU would wait.
"""

from duet_kernels.cls_score import cls_score
from duet_kernels.gather import gather_rows
from duet_kernels.guided_score import guided_score
from duet_kernels.keep import keep_highest
from duet_kernels.merge import select_and_merge

__all__ = ["cls_score", "gather_rows", "guided_score", "keep_highest", "select_and_merge"]
