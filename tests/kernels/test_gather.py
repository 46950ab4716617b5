"""Stage 2's gather: the decoder's state at some of its rows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from duet_kernels import gather_rows
from duet_kernels.dispatch import implementation


@pytest.fixture(params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest, poisoned: None) -> Iterator[None]:
    with implementation(request.param):
        yield


def state(
    num_rows: int, dim: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, residual = torch.randn(2, num_rows, dim, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return hidden, residual, torch.arange(num_rows, device=device) * 5 + 2**40


def assert_gathers(rows: list[int], *tensors: torch.Tensor) -> None:
    gathered = gather_rows(torch.tensor(rows, dtype=torch.int64, device=tensors[0].device), *tensors)

    assert len(gathered) == 3
    for whole, part in zip(tensors, gathered, strict=True):
        assert part.dtype == whole.dtype
        assert part.shape == (len(rows), *whole.shape[1:])
        assert part.tolist() == [whole[row].tolist() for row in rows]


@pytest.mark.parametrize("rows", [[], [0], [6], [1, 2, 5], [0, 1, 2, 3, 4, 5, 6], [3, 3, 0]], ids=str)
def test_rows_in_order(rows: list[int], device: torch.device):
    assert_gathers(rows, *state(7, 3, device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [1, 64, 5003])
def test_dtypes_and_widths(dtype: torch.dtype, dim: int, device: torch.device):
    assert_gathers([4, 0, 2], *state(5, dim, device, dtype))


def test_rows_farther_apart_than_they_are_long(device: torch.device):
    hidden, residual, places = state(6, 40, device)

    assert_gathers([2, 1], hidden[::2, :17], residual[:3, 7:24], places[:3])


def test_the_result_is_a_copy(device: torch.device):
    tensors = state(4, 2, device)
    before = [tensor.clone() for tensor in tensors]
    for gathered in gather_rows(torch.arange(4, device=device), *tensors):
        gathered += 1

    assert all(tensor.equal(was) for tensor, was in zip(tensors, before, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="eight gigabytes")
def test_rows_beyond_32_bit_offsets(device: torch.device):
    hidden = torch.zeros(2**20 + 2, 4096, dtype=torch.float16, device=device)
    hidden[2**20 + 1] = 3
    places = torch.arange(len(hidden), device=device)

    assert (gather_rows(places[-1:], hidden, hidden, places)[0] == 3).all()


def test_states_of_two_widths_are_refused_by_the_kernel(device: torch.device):
    hidden, residual, places = state(4, 8, device)

    with implementation("triton"), pytest.raises(AssertionError, match=r"residual\.shape"):
        gather_rows(places[:1], hidden, residual[:, :4], places)
