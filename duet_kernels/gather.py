"""Stage 2 gather: the rows that go on into the next segment."""

import torch


def gather_rows(rows: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every tensor ``[n, ...]`` at ``rows [k]`` -> ``[k, ...]``."""
    return tuple(tensor.index_select(0, rows) for tensor in tensors)
