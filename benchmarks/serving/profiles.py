"""The load's sizes on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes for one kind of device; ``defaults`` are the defaults of the command line."""

    name: str
    num_output: int
    max_num_batched_tokens: int
    scarce_kv_bytes: int  # so small that requests wait for memory while concurrency is observed
    defaults: Mapping[str, Any]


CPU = Profile(
    name="cpu",
    num_output=8,
    max_num_batched_tokens=2048,
    scarce_kv_bytes=256 << 20,
    defaults={
        "model": "small",
        "concurrency": [12],
        "waves": 2,
        "min_prompts": 4,
        "rounds": 2,
        "block_size": 32,
        "kv_gib": 2,  # so large that no request waits for memory while time is measured
        "compile": False,
        "api_servers": 1,
        "capacity": True,
        "stages": True,
    },
)
# For a GPU of 80 GB or more, and a CPU with enough cores for the API servers.
GPU = Profile(
    name="gpu",
    num_output=16,
    max_num_batched_tokens=8192,
    scarce_kv_bytes=8 << 30,
    defaults={
        "model": "llava-1.5-7b",
        "concurrency": [1, 8, 32, 128],
        "waves": 6,
        "min_prompts": 32,
        "rounds": 1,
        "block_size": 16,
        "kv_gib": 48,  # 128 uncompressed requests in flight, 320 MiB each
        "compile": True,
        "api_servers": 8,
        "capacity": False,
        "stages": False,
        "time_limit": 540,
    },
)
