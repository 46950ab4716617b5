"""The operations of DUET's two stages, batched over images and requests, one file per operation.

Every operation has a reference in plain torch, which runs on CPUs, and Triton kernels, which run on CUDA devices. Both
accumulate in float32 and give ties to the lower index. The Triton path never makes the host wait.
"""

from duet_kernels.cls_score import cls_score
from duet_kernels.dispatch import implementation, to_device, to_device_at_once
from duet_kernels.gather import gather_rows
from duet_kernels.guided_score import guided_score
from duet_kernels.keep import keep_highest
from duet_kernels.merge import clusters, select_and_merge
from duet_kernels.place_rows import BlockTables, SegmentBuffers, place_rows
from duet_kernels.ranked_rows import RankedRows, RankedRowsBuilder
from duet_kernels.received_score import received_score

__all__ = [
    "BlockTables",
    "RankedRows",
    "RankedRowsBuilder",
    "SegmentBuffers",
    "cls_score",
    "clusters",
    "gather_rows",
    "guided_score",
    "implementation",
    "keep_highest",
    "place_rows",
    "received_score",
    "select_and_merge",
    "to_device",
    "to_device_at_once",
]
