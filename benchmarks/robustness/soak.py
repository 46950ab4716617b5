"""Many clients use a server for many minutes: ``python -m benchmarks.robustness.soak``.

The clients send pictures, text and different settings; they ask for whole answers and for streams, and some hang up.
Each answer must have the same token ids as when the server served this request alone. At the end, the engine must hold
nothing, and the server's memory must have stopped growing.

The last bits of float32 sums depend on the other requests in the batch, so they can change the winner of a near tie
between two tokens. Requests with a near tie (less than MARGIN) in the answer are left out. In all others, every token
must match.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks import check_cli
from benchmarks.result_files import table
from benchmarks.robustness.small_server import ServerProcesses, small_server
from benchmarks.robustness.soak_requests import (
    BEHAVIORS,
    Behavior,
    SoakRequest,
    ask_alone,
    make_bodies,
    streamed_answer,
    whole_answer,
)

NAME = "soak"
MARGIN = 1e-3  # nats
MAX_SLOPE = 0.01  # relative growth of memory over the last half
SAMPLE_S = 1.0
IDLE = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
TIMEOUT = aiohttp.ClientTimeout(total=180)


@dataclass(slots=True)
class Record:
    """The observations so far."""

    asked: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # seconds; bytes by process


async def soak(
    url: str, *, clients: int, minutes: float, num_requests: int, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Run the soak against a running server. Returns figures and failures."""
    processes, record = ServerProcesses.of(url), Record()
    connector = aiohttp.TCPConnector(
        limit=0, force_close=True
    )  # the server may close a kept connection just as it is used again
    async with aiohttp.ClientSession(url, connector=connector, timeout=TIMEOUT, raise_for_status=True) as session:
        alone = [await ask_alone(session, body) for body in make_bodies(num_requests, seed)]
        decided = [request for request in alone if request.margin >= MARGIN]
        watch = asyncio.create_task(_watch_memory(processes, record))
        start = time.monotonic()
        deadline = start + 60 * minutes
        await asyncio.gather(*(_client(session, decided, f"{seed} {n}", deadline, record) for n in range(clients)))
        seconds = time.monotonic() - start
        watch.cancel()
        idle = await _idle(session, decided[0], record)
    memory = [(at, sum(sizes.values())) for at, sizes in record.memory]
    figures = {
        "asked": record.asked,
        "requests": len(decided),
        "left_out": len(alone) - len(decided),
        "least_margin": min(request.margin for request in decided),
        "seconds": seconds,
        "idle": idle,
        "memory_bytes": [size for _, size in memory],
        "memory_by_process": [sizes for _, sizes in record.memory[:: max(1, len(memory) // 20)]],
        "slope_of_the_last_half": relative_slope(memory[len(memory) // 2 :]),
    }
    failures = record.faults[:50]
    failures += [f"{len(record.faults)} answers lost or wrong"] if record.faults else []
    failures += [f"{name} is {value} at the end" for name, value in idle.items() if value]
    failures += [f"{process} has ended" for process in processes.ended()]
    return figures, failures


async def _client(
    session: aiohttp.ClientSession, requests: Sequence[SoakRequest], seed: str, deadline: float, record: Record
) -> None:
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        (behavior,) = rng.choices(list(BEHAVIORS), list(BEHAVIORS.values()))
        request = rng.choice(requests)
        record.asked[behavior] += 1
        try:
            fault = await _ask(session, request, behavior, rng)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            fault = f"lost: {type(error).__name__} {error}"
        if fault:
            record.faults.append(f"{behavior}: {fault}; {request.body[-300:]!r}")


async def _ask(
    session: aiohttp.ClientSession, request: SoakRequest, behavior: Behavior, rng: random.Random
) -> str | None:
    """Ask with this behavior. Returns what is wrong with the answer, or with the received part of it."""
    if behavior == "whole":
        return _differs(await whole_answer(session, request), request)
    if behavior == "gone before the answer":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0, 0.3)):
                return _differs(await whole_answer(session, request), request)
        return None
    most = rng.randrange(len(request.token_ids)) if behavior == "gone amid the answer" else len(request.token_ids) + 1
    tokens: list[int] = []
    async with contextlib.aclosing(streamed_answer(session, request)) as events:
        async for new in events:
            tokens += new
            if len(tokens) > most:
                return _differs(tokens, request, whole=False)
    return _differs(tokens, request)


def _differs(token_ids: Sequence[int], request: SoakRequest, *, whole: bool = True) -> str | None:
    expected = request.token_ids if whole else request.token_ids[: len(token_ids)]
    return None if tuple(token_ids) == expected else f"answered {list(token_ids)}, alone {list(expected)}"


async def _watch_memory(processes: ServerProcesses, record: Record) -> None:
    while True:
        record.memory.append((time.monotonic(), processes.resident_bytes()))
        await asyncio.sleep(SAMPLE_S)


async def _idle(session: aiohttp.ClientSession, request: SoakRequest, record: Record) -> dict[str, float]:
    """The engine's gauges after the last client. One more request, whose answer is checked too, updates them.

    They get 30 seconds to reach 0, because the server must first notice which clients have hung up.
    """
    for _ in range(30):
        fault = _differs(await whole_answer(session, request), request)
        record.faults += [f"afterwards: {fault}"] if fault else []
        async with session.get("/metrics") as response:
            gauges = read_gauges(await response.text())
        if not any(gauges.values()):
            break
        await asyncio.sleep(1)
    return gauges


def read_gauges(metrics: str) -> dict[str, float]:
    """Each gauge in IDLE, summed over engines."""
    return {name: sum(map(float, re.findall(rf"^{name}{{[^}}]*}} (\S+)$", metrics, re.MULTILINE))) for name in IDLE}


def relative_slope(samples: Sequence[tuple[float, int]]) -> float:
    """The rise of a line through the samples, from the first to the last, as a share of their mean."""
    times, sizes = np.array(samples, dtype=float).T
    slope, _ = np.polyfit(times - times[0], sizes, 1)
    return float(slope * (times[-1] - times[0]) / sizes.mean())


def check(args: argparse.Namespace, log: Path) -> tuple[dict[str, Any], list[str]]:
    with small_server(log, *args.server_args) as url:
        sizes = {"clients": args.clients, "minutes": args.minutes, "num_requests": args.requests, "seed": args.seed}
        figures, failures = asyncio.run(soak(url, **sizes))
    memory, slope = figures["memory_bytes"], figures["slope_of_the_last_half"]
    rows: list[list[object]] = [[behavior, count] for behavior, count in figures["asked"].items()]
    print(table(["asked", ""], [*rows, ["all", sum(figures["asked"].values())]]))
    print(f"in {figures['seconds']:.0f} s, {figures['requests']} requests ({figures['left_out']} near ties left out)")
    print(f"gauges at the end: {figures['idle']}")
    print(f"memory: {memory[0] >> 20} to {memory[-1] >> 20} MiB, {slope:+.2%} over the last half", flush=True)
    return figures, failures + ([f"memory grew by {slope:.2%} over the last half"] if slope > MAX_SLOPE else [])


def main() -> None:
    parser = check_cli.parser("python -m benchmarks.robustness.soak", NAME, __doc__)
    parser.add_argument("--clients", type=int, default=64, help="clients at the same time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="duration (%(default)s)")
    parser.add_argument("--requests", type=int, default=90, help="different requests (%(default)s)")
    parser.add_argument("--server-args", type=shlex.split, default=[], help="more server flags, as one quoted string")
    check_cli.run(NAME, parser.parse_args(), check)


if __name__ == "__main__":
    main()
