"""Registers and shared memory of the kernels, compiled ahead of time. No GPU is needed.

The launchers run as on a GPU, but on tensors without memory. Triton's hook before a compilation records the variant to
compile, and prevents the launch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

import duet_kernels
from benchmarks.kernels.cases import (
    AGGRESSIVE,
    BALANCED,
    LIGHT,
    VISIONZIP,
    Case,
    cases,
    cls_score_case,
    decode_case,
    gather_case,
    guided_case,
    keep_case,
    merge_case,
    prefill_case,
    received_case,
)

# Sizes that change from step to step; a change must not compile anything.
REQUESTS, VISUAL, GUIDING = (1, 2, 9, 16), (1, 16, 102, 103, 576), (1, 63, 65)
UNITS = ((4096,), (1,), (63,), (257, 4096), (1024,) * 9)
STAGE1 = (LIGHT, BALANCED, VISIONZIP, (1, 1, 1), (73, 0, 4), (73, 30, 4), (80, 16, 4))

ARCHS = (90, 80)  # Hopper and Ampere
REGISTERS_PER_SM, WARPS_PER_SM, BLOCKS_PER_SM = 1 << 16, 64, 32
SHARED_PER_SM = {90: 228 << 10, 80: 164 << 10}
SHARED_PER_BLOCK = {arch: size - 1024 for arch, size in SHARED_PER_SM.items()}  # the driver reserves 1 KiB


class Variant(NamedTuple):
    """A kernel with the specialization of one launch."""

    function: Any  # Triton's JITFunction
    specialization: str  # signature, constants, attributes and options, as Triton writes them


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of one compiled variant, and the cases that launch it."""

    kernel: str
    arch: int
    cases: tuple[str, ...]
    num_warps: int
    registers: int
    stack_bytes: int  # per thread; holds spilled registers
    shared_bytes: int
    warps_per_sm: int  # at most; the hardware limit is `WARPS_PER_SM`


def warps_per_sm(arch: int, num_warps: int, registers: int, shared_bytes: int) -> int:
    """The most warps that an SM can hold at a time, given a program's registers and shared memory."""
    registers_per_warp = -(-registers * 32 // 256) * 256
    warps = REGISTERS_PER_SM // registers_per_warp // 4 * 4  # each quarter of an SM has its own register file
    by_shared = SHARED_PER_SM[arch] // (shared_bytes + SHARED_PER_SM[arch] - SHARED_PER_BLOCK[arch])
    return min(BLOCKS_PER_SM, min(warps, WARPS_PER_SM) // num_warps, by_shared) * num_warps


class _NoDriver:
    """The part of Triton's driver that compiling needs."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> Any:
        return self  # kernels cache compiled code by device, so every new object starts with an empty cache

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def launched(arch: int, launches: Iterable[Case]) -> dict[Variant, list[str]]:
    """The variants that these cases launch on an architecture, each with the cases' names."""
    triton.runtime.driver.set_active(_NoDriver(arch))
    names: dict[Variant, list[str]] = {}
    for case in launches:
        for variant in _variants(case):
            names.setdefault(variant, []).append(case.name)
    return names


def _variants(case: Case) -> Iterable[Variant]:
    found: dict[Variant, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found[Variant(fn.jit_function, compile["specialization_data"])] = None
        return True  # neither compile nor launch

    triton.knobs.runtime.jit_cache_hook = note
    try:
        with duet_kernels.implementation("triton"):
            case.build(torch.device("meta"))()
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return found


def examine() -> dict[str, Any]:
    """All results of this module, ready for JSON."""
    _cuobjdump()  # fails early if it is missing
    return {
        "triton": triton.__version__,
        "kernels": kernel_names(),
        "compiled": [asdict(resources) for resources in compile_all()],
        "recompiled": recompiled(),
    }


def compile_all() -> Iterator[Resources]:
    """Compile what the cases launch, for every architecture."""
    for arch in ARCHS:
        for variant, names in launched(arch, cases()).items():
            compiled = variant.function.preload(variant.specialization)
            registers, stack = _registers_and_stack(compiled.asm["cubin"])
            num_warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
            warps = warps_per_sm(arch, num_warps, registers, shared)
            yield Resources(_name(variant.function), arch, tuple(names), num_warps, registers, stack, shared, warps)


def recompiled() -> list[str]:
    """Kernels that would be compiled again when only a step's sizes change, each with its case."""
    found = []
    for base, *changed in size_changes():
        known = launched(ARCHS[0], [base])
        for variant, names in launched(ARCHS[0], changed).items():
            if variant not in known:
                found += [f"{_name(variant.function)} for {name}" for name in names]
    return found


def size_changes() -> list[list[Case]]:
    """In each list, a case, then the same operation with the sizes of other steps."""
    bf16 = torch.bfloat16
    merged = [[AGGRESSIVE] * count for count in (8, *REQUESTS)] + [[counts] * 8 for counts in STAGE1]
    guiding = [guided_case(8, 307, bf16, num_text=count) for count in GUIDING]
    sizes = [(8, 307), *((count, 307) for count in REQUESTS), *((8, count) for count in VISUAL)]
    return [
        [cls_score_case(count, bf16) for count in (8, *REQUESTS)],
        [received_case(lengths, bf16) for lengths in UNITS],
        [merge_case(settings, bf16) for settings in merged],
        [*(guided_case(*size, bf16) for size in sizes), *guiding],
        [keep_case(*size) for size in sizes],
        [gather_case(*size, bf16) for size in sizes],
        [decode_case(count) for count in (128, 127, 1)],
        [prefill_case(count) for count in (12, 11, 1)],
    ]


def kernel_names() -> list[str]:
    """Every kernel of ``duet_kernels``."""
    modules = [info.name for info in pkgutil.iter_modules(duet_kernels.__path__, "duet_kernels.")]
    members = [value for module in modules for value in vars(importlib.import_module(module)).values()]
    names = {_name(value) for value in members if isinstance(value, JITFunction)}
    return sorted(name for name in names if name.endswith("_kernel"))


def _name(function: Any) -> str:
    return f"{function.__module__.removeprefix('duet_kernels.')}.{function.__name__}"


@functools.cache
def _cuobjdump() -> str:
    try:
        return triton.knobs.nvidia.cuobjdump.path
    except RuntimeError as error:
        raise SystemExit(f"{error}: Triton's wheels contain cuobjdump, or TRITON_CUOBJDUMP_PATH names it") from error


def _registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread, as a kernel's binary declares them."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.cubin"
        path.write_bytes(cubin)
        answer = subprocess.run([_cuobjdump(), "-res-usage", path], capture_output=True, text=True, check=True).stdout
    usage = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", answer)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def render(result: dict[str, Any]) -> str:
    """The result of ``examine`` as a table, and two lists that should be empty."""
    compiled = result["compiled"]
    lines = [_row("kernel", "arch", "warps", "registers", "stack B", "shared B", "warps/SM", "cases")]
    for entry in compiled:
        numbers = (entry[name] for name in ("num_warps", "registers", "stack_bytes", "shared_bytes", "warps_per_sm"))
        first, *others = entry["cases"]
        cases_cell = first + (f" (+{len(others)})" if others else "")
        lines.append(_row(entry["kernel"], f"sm_{entry['arch']}", *map(str, numbers), cases_cell))
    missing = sorted(set(result["kernels"]) - {entry["kernel"] for entry in compiled})
    for heading, found in (
        ("Launched by no case", missing),
        ("Compiled again when only a step's sizes change", result["recompiled"]),
    ):
        lines += ["", f"{heading}: {len(found) or 'nothing'}", *(f"  {line}" for line in found)]
    return "\n".join(lines)


def _row(kernel: str, *cells: str) -> str:
    widths = (7, 7, 11, 9, 10, 10)
    numbers = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{kernel:34}{numbers}  {cells[-1]}"
