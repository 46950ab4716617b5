"""Stage 2 gather: copies the rows that enter the next segment."""

import torch
import triton
import triton.language as tl

from duet_kernels.dispatch import runs_triton

BLOCK_DIM = 4096  # with 4 warps, four loads of 16 bytes in flight per thread and tensor


def gather_rows(
    rows: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The decoder's state at some of its rows, in the order of ``rows``.

    Args:
        rows: ``[k]`` int64, each within ``[0, n)``.
        hidden, residual: ``[n, dim]``, one dtype.
        places: ``[n]`` int64.

    Returns:
        Copies ``hidden[rows]``, ``residual[rows]`` and ``places[rows]``.
    """
    if runs_triton(hidden):
        return _triton(rows, hidden, residual, places)
    return hidden.index_select(0, rows), residual.index_select(0, rows), places.index_select(0, rows)


@triton.jit(do_not_specialize=["rows_ptr", "places_ptr", "places_out_ptr"])
def _gather_kernel(
    rows_ptr,
    hidden_ptr,
    residual_ptr,
    places_ptr,
    hidden_out_ptr,
    residual_out_ptr,
    places_out_ptr,
    dim,
    hidden_stride,
    residual_stride,
    BLOCK_DIM: tl.constexpr,
):
    """One output row, one block of columns, of hidden and residual."""
    target = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    row = tl.load(rows_ptr + target)
    column = block * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    inside = column < dim
    hidden = tl.load(hidden_ptr + row * hidden_stride + column, mask=inside)
    residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside)
    tl.store(hidden_out_ptr + target * dim + column, hidden, mask=inside)
    tl.store(residual_out_ptr + target * dim + column, residual, mask=inside)
    if block == 0:
        tl.store(places_out_ptr + target, tl.load(places_ptr + row))


def _triton(
    rows: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_rows, dim = rows.shape[0], hidden.shape[1]
    assert hidden.shape == residual.shape, f"{hidden.shape=} {residual.shape=}"
    assert hidden.dtype == residual.dtype, f"{hidden.dtype=} {residual.dtype=}"
    assert rows.dtype == places.dtype == torch.int64, f"{rows.dtype=} {places.dtype=}"
    assert rows.is_contiguous(), f"{rows.stride()=}"
    assert places.is_contiguous(), f"{places.stride()=}"
    assert hidden.stride(1) == residual.stride(1) == 1, f"{hidden.stride()=} {residual.stride()=}"
    out = hidden.new_empty(num_rows, dim), residual.new_empty(num_rows, dim), places.new_empty(num_rows)
    if num_rows > 0:
        block = min(BLOCK_DIM, triton.next_power_of_2(dim))
        _gather_kernel[num_rows, triton.cdiv(dim, block)](
            rows_ptr=rows,
            hidden_ptr=hidden,
            residual_ptr=residual,
            places_ptr=places,
            hidden_out_ptr=out[0],
            residual_out_ptr=out[1],
            places_out_ptr=out[2],
            dim=dim,
            hidden_stride=hidden.stride(0),
            residual_stride=residual.stride(0),
            BLOCK_DIM=block,
            num_warps=4,
        )
    return out
