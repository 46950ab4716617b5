from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.kernels import __main__ as kernels
from benchmarks.kernels import resources, timing
from benchmarks.kernels.cases import Case, cases, gather_case, guided_case, keep_case, merge_case
from benchmarks.kernels.timing import Rates

BF16, FP32 = torch.bfloat16, torch.float32


def command(*words: str, **environment: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def examined() -> dict[str, Any]:
    """Every kernel, compiled for two architectures, although Triton interprets kernels in the other tests."""
    return json.loads(command("--compile-only", "--json", TRITON_INTERPRET="1"))


def described(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{entry['kernel']} on sm_{entry['arch']} in {entry['cases'][0]}: {entry}" for entry in entries]


def test_every_kernel_compiles_for_every_architecture(examined, capsys):
    with capsys.disabled():
        print(f"\n\n{resources.render(examined)}")
    assert len(examined["kernels"]) >= 6  # every operation has at least one
    for arch in resources.ARCHS:
        assert {entry["kernel"] for entry in examined["compiled"] if entry["arch"] == arch} == set(examined["kernels"])


def test_no_kernel_spills_registers(examined):
    assert described([entry for entry in examined["compiled"] if entry["stack_bytes"] > 0]) == []


def test_every_kernel_fits_into_shared_memory(examined):
    limits = {80: 163 << 10, 90: 227 << 10}
    assert described([e for e in examined["compiled"] if e["shared_bytes"] > limits[e["arch"]]]) == []


def test_other_sizes_compile_nothing_again(examined):
    assert examined["recompiled"] == []


@pytest.mark.parametrize(
    ("arch", "num_warps", "registers", "shared_bytes", "expected"),
    [
        (90, 4, 32, 0, 64),  # the most warps
        (90, 4, 33, 0, 48),  # registers are allocated in units of eight
        (90, 4, 128, 0, 16),
        (90, 8, 168, 0, 8),  # registers for twelve warps hold only one program
        (90, 4, 64, 64 << 10, 12),  # three programs, each with 1 KiB reserved
        (80, 4, 64, 64 << 10, 8),
        (90, 1, 32, 0, 32),  # the most programs
    ],
)
def test_warps_per_sm(arch, num_warps, registers, shared_bytes, expected):
    assert resources.warps_per_sm(arch, num_warps, registers, shared_bytes) == expected


@pytest.mark.parametrize(
    ("num_bytes", "num_flops", "dtype", "floor_us"),
    [
        (8_000_000, 0, FP32, 2.0),
        (8_000_000, 500_000_000, BF16, 2.0),
        (8_000_000, 1_600_000_000, BF16, 4.0),
        (8_000_000, 1_600_000_000, FP32, 32.0),
    ],
)
def test_floor_is_the_slower_of_moving_and_computing(num_bytes, num_flops, dtype, floor_us):
    rates = Rates(4e12, {"torch.bfloat16": 4e14, "torch.float32": 5e13})
    case = Case("", lambda device: lambda: None, num_bytes, num_flops, dtype)
    assert rates.floor_us(case) == pytest.approx(floor_us)


def test_minimum_bytes_and_flops_of_cases():
    kept = keep_case(8, 102)
    assert kept.num_bytes == 8 * (102 * 4 + 51 * 8)
    gathered = gather_case(2, 100, BF16)
    assert gathered.num_bytes == 2 * (50 + 64) * (2 * 2 * 4096 * 2 + 3 * 8)
    guided = guided_case(3, 10, BF16, num_text=2, kv_heads=8)
    assert guided.num_flops == 2 * 3 * (11 + 12) * 4096  # the two text rows see 11 and 12 keys
    assert guided.num_bytes == 3 * ((2 * 32 + 12 * 8) * 128 * 2 + 10 * 4)
    merged = merge_case([(72, 30, 4)], BF16)  # 120 candidates
    assert merged.num_bytes == (72 + 120 + 102) * 1024 * 2 + 120 * 64 * 4 + 576 * (4 + 8)
    assert merged.num_flops == 90 * 30 * 2 * 64 + 120 * 1024


def test_cases_have_names_of_their_own():
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)


def test_the_table_shows_times_and_ratios():
    measured = {"name": "gather", "floor_us": 2.0, "time_us": 5.0, "graph_us": 3.0, "reference_us": 9.0}
    result = {
        "gpu": "a GPU",
        "rates": {"bytes_per_second": 4e12, "flops_per_second": {"torch.bfloat16": 8e14}},
        "empty_launch": {"time_us": 4.0, "graph_us": 1.5},
        "cases": [measured, {**measured, "name": "merge", "graph_us": None}],
    }
    lines = timing.render(result).splitlines()
    assert lines[0] == "a GPU: 4.00 TB/s copied, 800.0 TFLOP/s torch.bfloat16"
    assert lines[1] == "one empty kernel: 4.0 µs, 1.5 µs in a graph"
    assert lines[-2].split() == ["gather", "2", "5.0", "2.5x", "3.0", "1.5x", "9.0"]
    assert lines[-1].split() == ["merge", "2", "5.0", "2.5x", "9.0"]


def test_without_a_gpu_a_message_is_printed():
    assert command(CUDA_VISIBLE_DEVICES="") == "There is no CUDA GPU to measure on; --compile-only needs none.\n"


def test_what_was_timed_is_kept_when_a_later_case_fails(tmp_path, monkeypatch):
    def measure():
        result = {"gpu": "a GPU", "cases": []}
        for name in ("first", "second"):
            result["cases"].append(name)
            yield result
        raise RuntimeError("no kernel image")

    output = tmp_path / "kernels.json"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the command removes it: put it back afterwards
    monkeypatch.setattr("sys.argv", ["kernels", "--output", str(output)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timing, "measure", measure)
    with pytest.raises(RuntimeError, match="no kernel image"):
        kernels.main()
    kept = json.loads(output.read_text())
    assert (kept["gpu"], kept["cases"]) == ("a GPU", ["first", "second"])
    assert "commit" in kept["environment"]


def test_every_case_is_handed_on_as_it_is_timed(monkeypatch):
    monkeypatch.setattr(timing, "_copy_rate", lambda device: 4e12)
    monkeypatch.setattr(timing, "_matmul_rate", lambda dtype, device: 8e14)
    monkeypatch.setattr(timing, "_time_us", lambda call: 1.0)
    monkeypatch.setattr(timing, "_graph_us", lambda call: 1.0)
    monkeypatch.setattr(timing, "_measure_case", lambda case, rates, device: case.name)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    names = [case.name for case in cases()]
    lengths = [len(result["cases"]) for result in timing.measure()]
    assert lengths == list(range(1, len(names) + 1))
