"""Stage 2 gather: every tensor at the same rows."""

from __future__ import annotations

import pytest
import torch

from duet_kernels import gather_rows


@pytest.mark.parametrize("rows", [[], [0], [6], [1, 2, 5], [0, 1, 2, 3, 4, 5, 6], [3, 3, 0]], ids=str)
def test_rows_of_every_tensor_in_order(rows: list[int]):
    hidden = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    tensors = hidden, hidden.to(torch.bfloat16).unsqueeze(-1), torch.arange(7)
    gathered = gather_rows(torch.tensor(rows, dtype=torch.int64), *tensors)

    assert len(gathered) == 3
    for whole, part in zip(tensors, gathered, strict=True):
        assert part.dtype == whole.dtype
        assert part.shape == (len(rows), *whole.shape[1:])
        assert part.tolist() == [whole[row].tolist() for row in rows]


def test_strided_rows():
    hidden = torch.arange(24.0).view(3, 8).T[::2]
    assert not hidden.is_contiguous()
    (gathered,) = gather_rows(torch.tensor([3, 1]), hidden)

    assert gathered.tolist() == [hidden[3].tolist(), hidden[1].tolist()]


def test_the_result_is_a_copy():
    hidden = torch.zeros(4, 2)
    (gathered,) = gather_rows(torch.arange(4), hidden)
    gathered += 1

    assert not hidden.any()
