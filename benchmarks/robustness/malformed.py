"""Sends malformed pictures and ``compression`` fields to a server: ``python -m benchmarks.robustness.malformed``.

Every request must be answered, with 200 or with a 4xx in OpenAI's error format. Afterwards, all processes of the server
must still run. Compared with the state after a warm-up, they may hold at most 200 MiB more memory, and an ordinary
request must get the same answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import check_cli
from benchmarks.pictures import data_url, picture
from benchmarks.result_files import table
from benchmarks.robustness.malformed_fields import BODIES, PRESETS, VALUES
from benchmarks.robustness.malformed_parts import KINDS
from benchmarks.robustness.small_server import ServerProcesses, small_server

NAME = "malformed"
ROUTES = ("/v1/chat/completions",) * 4 + ("/v1/compression/plan",)
MAX_GROWTH = 200 << 20
NUM_WARM_UP = 200
PICTURE = {"type": "image_url", "image_url": {"url": data_url(picture())}}


@dataclass(frozen=True, slots=True)
class Malformed:
    """A malformed request; ``kind`` names what is wrong with it."""

    kind: str
    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """``status`` is 0 if no answer came; ``fault`` says what is wrong with the answer, if anything."""

    request: Malformed
    status: int
    fault: str | None


def chat(part: object, **fields: Any) -> dict[str, Any]:
    content = [part, {"type": "text", "text": "What color is it?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0, **fields}


def malformed_pictures(number: int, seed: int) -> list[Malformed]:
    """Every kind in turn; the same seed gives the same requests."""
    rng = random.Random(f"pictures {seed}")
    made = []
    for kind, part in islice(cycle(KINDS.items()), number):
        body = chat(part(rng), compression=rng.choice(PRESETS))
        made.append(Malformed(kind, rng.choice(ROUTES), json.dumps(body).encode()))
    return made


def malformed_fields(number: int, seed: int) -> list[Malformed]:
    """Every kind in turn; the same seed gives the same requests."""
    rng = random.Random(f"fields {seed}")
    made = []
    for kind in islice(cycle([*VALUES, *BODIES]), number):
        body = kind(chat(PICTURE), rng) if kind in BODIES else json.dumps(chat(PICTURE, compression=kind(rng))).encode()
        made.append(Malformed(kind.__name__, rng.choice(ROUTES), body))
    return made


async def send_all(url: str, requests: Sequence[Malformed], concurrency: int) -> list[Answer]:
    """The answers, in the order of the requests."""
    in_flight = asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(force_close=True)  # a kept connection may close just as it is used again
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:

        async def send(request: Malformed) -> Answer:
            async with in_flight:
                return await _send(session, request)

        return await asyncio.gather(*map(send, requests))


async def _send(session: aiohttp.ClientSession, request: Malformed) -> Answer:
    headers = {"Content-Type": "application/json"}
    try:
        async with session.post(request.path, data=request.body, headers=headers) as response:
            return Answer(request, response.status, fault(response.status, await response.text()))
    except (aiohttp.ClientError, TimeoutError) as error:
        return Answer(request, 0, repr(error))


def fault(status: int, text: str) -> str | None:
    """What is wrong with an answer: its status, or the shape of its error."""
    return None if status == 200 or (400 <= status < 500 and _is_openai_error(text)) else f"{status} {text[:200]}"


def _is_openai_error(text: str) -> bool:
    try:
        error = json.loads(text)["error"]
    except (ValueError, TypeError, KeyError):
        return False
    return bool(error["message"]) and {"type", "param", "code"} <= error.keys()


def by_kind(answers: Sequence[Answer]) -> dict[str, Counter[str]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        status = "200" if answer.status == 200 else f"{answer.status // 100}xx" if answer.status else "none"
        counts[answer.request.kind].update([status, *(["at fault"] if answer.fault else [])])
    return dict(counts)


def different_faults(answers: Sequence[Answer]) -> list[str]:
    """One line for every kind and fault, with the end of a request that shows it."""
    requests: defaultdict[tuple[str, str], list[Malformed]] = defaultdict(list)
    for answer in answers:
        if answer.fault:
            requests[answer.request.kind, check_cli.without_ids(answer.fault)].append(answer.request)
    return [f"{len(r)} times {kind}: {fault}; such as {r[0].body[-200:]!r}" for (kind, fault), r in requests.items()]


def render(counts: dict[str, Counter[str]]) -> str:
    columns = ["200", "4xx", "5xx", "none", "at fault"]
    rows = [[kind, *(count[column] for column in columns)] for kind, count in counts.items()]
    return table(["kind", *columns], [*rows, ["all", *(sum(c[k] for c in counts.values()) for k in columns)]])


def check(args: argparse.Namespace, log: Path) -> tuple[dict[str, Any], list[str]]:
    with small_server(log) as url:
        return asyncio.run(_check(args, url))


async def _check(args: argparse.Namespace, url: str) -> tuple[dict[str, Any], list[str]]:
    """Run the check against a running server."""
    processes = ServerProcesses.of(url)
    requests = [*malformed_pictures(args.pictures, args.seed), *malformed_fields(args.fields, args.seed)]
    random.Random(args.seed).shuffle(requests)
    warm_up = [*malformed_pictures(NUM_WARM_UP, args.seed + 1), *malformed_fields(NUM_WARM_UP, args.seed + 1)]
    await send_all(url, warm_up, args.concurrency)
    healthy, before = await healthy_answer(url), processes.resident_bytes()
    answers = await send_all(url, requests, args.concurrency)
    after_answer, after = await healthy_answer(url), processes.resident_bytes()
    growth = sum(after.values()) - sum(before.values())
    counts, faults = by_kind(answers), different_faults(answers)
    print(render(counts))
    print(f"memory: {sum(before.values()) >> 20} MiB, {growth / (1 << 20):+.1f} MiB since the warm-up", flush=True)
    failures = faults + [f"{process} has ended" for process in processes.ended()]
    failures += [f"the server's memory grew by {growth >> 20} MiB"] if growth > MAX_GROWTH else []
    failures += [f"answered {after_answer} afterwards, {healthy} before"] if after_answer != healthy else []
    memory = {process: {"warm": size, "end": after.get(process)} for process, size in before.items()}
    return {"by_kind": counts, "memory_bytes": memory, "grown_bytes": growth}, failures


async def healthy_answer(url: str) -> list[int]:
    """Token ids of an ordinary compressed answer.

    Raises:
        aiohttp.ClientError: if there is no such answer.
    """
    body = chat(PICTURE, compression="balanced", max_tokens=8, return_token_ids=True)
    async with aiohttp.ClientSession(url, raise_for_status=True) as session:
        await session.get("/health")
        async with session.post("/v1/chat/completions", json=body) as response:
            return (await response.json())["choices"][0]["token_ids"]


def main() -> None:
    parser = check_cli.parser("python -m benchmarks.robustness.malformed", NAME, __doc__)
    parser.add_argument("--pictures", type=int, default=2000, help="malformed pictures (%(default)s)")
    parser.add_argument("--fields", type=int, default=2000, help="malformed compression fields (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight (%(default)s)")
    check_cli.run(NAME, parser.parse_args(), check)


if __name__ == "__main__":
    main()
