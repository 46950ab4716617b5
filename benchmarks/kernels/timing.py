"""Times the kernels on a GPU, and compares them with the shortest possible time for the same work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from triton.testing import do_bench, do_bench_cudagraph

from benchmarks.kernels.cases import Case, cases
from duet_kernels import implementation

COPY_BYTES = 4 << 30
MATMUL_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Rates:
    """The best rates that were measured on the GPU."""

    bytes_per_second: float  # read and written
    flops_per_second: dict[str, float]  # by dtype

    def floor_us(self, case: Case) -> float:
        """The shortest possible time for the case's work, without the cost of launches."""
        moving = case.num_bytes / self.bytes_per_second
        computing = case.num_flops / self.flops_per_second[str(case.flop_dtype)] if case.num_flops else 0.0
        return max(moving, computing) * 1e6


def measure() -> Iterator[dict[str, Any]]:
    """Time every case. Yields the result so far, ready for JSON, after each."""
    device = torch.device("cuda")
    launches = cases()
    rates = Rates(
        _copy_rate(device),
        {str(dtype): _matmul_rate(dtype, device) for dtype in {case.flop_dtype for case in launches if case.num_flops}},
    )
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(device),
        "triton": triton.__version__,
        "rates": asdict(rates),
        "empty_launch": {"time_us": _time_us(_launch_nothing), "graph_us": _graph_us(_launch_nothing)},
        "cases": [],
    }
    for case in launches:
        result["cases"].append(_measure_case(case, rates, device))
        yield result


def _measure_case(case: Case, rates: Rates, device: torch.device) -> dict[str, Any]:
    call = case.build(device)
    with implementation("triton"):
        time_us, graph_us = _time_us(call), _graph_us(call) if case.in_graph else None
    with implementation("reference"):
        reference_us = _time_us(call)
    return {
        "name": case.name,
        "bytes": case.num_bytes,
        "flops": case.num_flops,
        "floor_us": rates.floor_us(case),
        "time_us": time_us,
        "graph_us": graph_us,
        "reference_us": reference_us,
    }


def _time_us(call: Callable[[], object]) -> float:
    """Median of single calls with a cleared L2 cache. Includes the time that the GPU waits for the host."""
    return do_bench(call, return_mode="median") * 1e3


def _graph_us(call: Callable[[], object]) -> float:
    """Median over replays of many calls in one CUDA graph, without the host between them and with a warm L2 cache."""
    return do_bench_cudagraph(call, return_mode="median") * 1e3


def _copy_rate(device: torch.device) -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (_time_us(lambda: target.copy_(source)) * 1e-6)


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    torch.set_float32_matmul_precision("highest")
    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype, device=device) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / (_time_us(lambda: left @ right) * 1e-6)


@triton.jit
def _empty_kernel():
    return


def _launch_nothing() -> None:
    _empty_kernel[(1,)]()


def render(result: dict[str, Any]) -> str:
    """A result of ``measure`` as a table."""
    rates, empty = result["rates"], result["empty_launch"]
    flops = ", ".join(f"{rate / 1e12:.1f} TFLOP/s {name}" for name, rate in sorted(rates["flops_per_second"].items()))
    lines = [
        f"{result['gpu']}: {rates['bytes_per_second'] / 1e12:.2f} TB/s copied, {flops}",
        f"one empty kernel: {empty['time_us']:.1f} µs, {empty['graph_us']:.1f} µs in a graph",
        "",
        _LEGEND,
        "",
        _row("", "floor", "time", "/ floor", "graph", "/ floor", "reference"),
    ]
    return "\n".join([*lines, *(_case_row(entry) for entry in result["cases"])])


_LEGEND = """\
floor      the larger of bytes / copy rate and FLOPs / matmul rate, in µs
time       one call with a cold L2 cache, including the time that the GPU waits for the host
graph      one of many calls in a CUDA graph, with a warm L2 cache
reference  the same call in plain torch"""


def _case_row(entry: dict[str, Any]) -> str:
    floor = entry["floor_us"]
    times = [entry["time_us"], entry["graph_us"]]
    cells = [cell for time in times for cell in (("", "") if time is None else (f"{time:.1f}", f"{time / floor:.3g}x"))]
    return _row(entry["name"], f"{floor:.3g}", *cells, f"{entry['reference_us']:.1f}")


def _row(name: str, *cells: str) -> str:
    return f"{name:52}" + "".join(f"{cell:>10}" for cell in cells)
