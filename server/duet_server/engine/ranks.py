"""What tensor-parallel ranks compute together."""

import torch

from duet_server.engine.vllm_internals import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)


def mean_over_ranks(per_rank: torch.Tensor) -> torch.Tensor:
    """The mean of what ranks computed for their own heads.

    They are gathered, then added in rank order: every rank gets the same bits, and so keeps the same tokens.
    """
    num_ranks = get_tensor_model_parallel_world_size()
    if num_ranks == 1:
        return per_rank
    return tensor_model_parallel_all_gather(per_rank, dim=0).unflatten(0, (num_ranks, -1)).mean(dim=0)
