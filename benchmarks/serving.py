"""duet-server against stock vLLM on one machine: ``python -m benchmarks.serving``.

Starts the two in turn, stock first and last, never both at once; drives them with the same load through the library
behind ``vllm bench serve``; prints a table and keeps everything that was measured in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.limits import BlockPool, RequestCost
from benchmarks.load import Client, Load
from benchmarks.model import SHAPE, write_checkpoint
from benchmarks.report import Visit, compare, render, text_load_name
from benchmarks.servers import Server, ServerFlags, ServerKind, running_server
from duet_server.plan import presets

RESULTS = Path(__file__).parent / "results"
MODES = ("off", "light", "balanced", "aggressive")
NUM_TEXT, NUM_OUTPUT = 64, 8
AMPLE_KV_BYTES = 2 << 30  # no request waits for memory while time is measured
SCARCE_KV_BYTES = 256 << 20  # while concurrency is measured, all do


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One run's settings and the files it needs."""

    args: argparse.Namespace
    client: Client
    log: Path

    def flags(self, kv_cache_bytes: int) -> ServerFlags:
        return ServerFlags(self.client.checkpoint, kv_cache_bytes, self.args.block_size, not self.args.compile)

    def loads(self, kind: ServerKind) -> list[Load]:
        """What a visit measures: every mode on duet-server; pictures, and each mode's text prompts, on stock vLLM."""
        modes = self.args.modes
        if kind == "duet":
            return [Load(mode, NUM_TEXT, NUM_OUTPUT, compression=mode) for mode in modes]
        texts = [
            Load(text_load_name(mode), request_cost(mode).text_prompt_tokens(), NUM_OUTPUT, has_picture=False)
            for mode in modes
            if mode != "off"
        ]
        return [Load("pictures", NUM_TEXT, NUM_OUTPUT), *texts]

    def visit(self, kind: ServerKind, round_idx: int) -> Visit:
        """Start a server, warm it up, measure every load once."""
        say(f"starting {kind}")
        passes: Visit = {}
        with running_server(kind, self.flags(AMPLE_KV_BYTES), self.log) as server:
            for load in self.loads(kind):
                self.client.measure(server, load, num_prompts=2, seed=-1)
                passes[load.name] = self.client.measure(server, load, self.args.num_prompts, seed=round_idx)
                say(f"{kind} {load.name}: {passes[load.name]['requests_per_second']:.3f} requests/s")
        return passes

    def alternate(self) -> tuple[list[Visit], list[Visit]]:
        """Visits to stock vLLM and to duet-server in turn, one more to the former."""
        stock, duet = [self.visit("stock", 0)], []
        for round_idx in range(self.args.rounds):
            duet.append(self.visit("duet", round_idx))
            stock.append(self.visit("stock", round_idx + 1))
        return stock, duet

    def capacity(self) -> dict[str, Any]:
        """By mode: requests that fit into the same KV memory, by the engines' blocks, and the most seen answering."""
        off = request_cost("off")
        with self._scarce("stock") as server:
            num_blocks, block_size = server.block_pool()
            stock = BlockPool(num_blocks, block_size, SHAPE.decoder.num_layers)
            fits_stock = fits(stock, off.segment_tokens[:1])
            seen_stock = self._most_answering(server, Load("pictures", NUM_TEXT, NUM_OUTPUT), fits_stock)
        entries = {}
        with self._scarce("duet") as server:
            duet_blocks, _ = server.block_pool()
            # The same memory in more blocks: each is for fewer layers.
            duet = BlockPool(duet_blocks, block_size, round(SHAPE.decoder.num_layers * num_blocks / duet_blocks))
            for load in self.loads("duet"):
                cost = request_cost(load.name)
                fits_duet = fits(duet, cost.segment_tokens)
                entries[load.name] = {
                    "fits": {
                        "stock": fits_stock,
                        "duet": fits_duet,
                        "text": fits(stock, (cost.text_prompt_tokens(),)),
                    },
                    "observed": {"stock": seen_stock, "duet": self._most_answering(server, load, fits_duet)},
                }
        return entries

    def _scarce(self, kind: ServerKind) -> Any:
        say(f"starting {kind} with {SCARCE_KV_BYTES >> 20} MiB of KV cache")
        return running_server(kind, self.flags(SCARCE_KV_BYTES), self.log)

    def _most_answering(self, server: Server, load: Load, fitting: int) -> int:
        most = self.client.most_answering(server, load, num_prompts=2 * fitting, seed=0)
        say(f"{server.kind} {load.name}: {most} answering at once, {fitting} fit")
        return most

    def stages(self) -> dict[str, dict[str, float]]:
        """Both stages' own time, measured in a process of its own."""
        say("timing the stages")
        modes = [mode for mode in self.args.modes if mode != "off"]
        command = [sys.executable, "-m", "benchmarks.stages", "--checkpoint", str(self.client.checkpoint)]
        command += ["--num-text", str(NUM_TEXT), "--rounds", "1" if self.args.quick else "5", "--modes", *modes]
        with self.log.open("a") as log:
            answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
        return json.loads(answer.stdout.splitlines()[-1])


def request_cost(mode: str) -> RequestCost:
    return RequestCost(SHAPE, presets(SHAPE)[mode], NUM_TEXT, NUM_OUTPUT)


def fits(pool: BlockPool, segment_tokens: tuple[int, ...]) -> int:
    """Requests of these lengths that fit; a single length is that of all layers."""
    layers = SHAPE.segment_layers if len(segment_tokens) > 1 else (SHAPE.decoder.num_layers,)
    return pool.num_requests(segment_tokens, layers, NUM_OUTPUT)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that ``args`` ask for."""
    with tempfile.TemporaryDirectory(prefix="duet-benchmark-") as directory:
        checkpoint = Path(directory) / "checkpoint"
        checkpoint.mkdir()
        write_checkpoint(checkpoint)
        benchmark = Benchmark(args, Client(checkpoint, args.concurrency), Path(directory) / "servers.log")
        capacity = benchmark.capacity() if args.capacity else {}
        stages = benchmark.stages() if args.stages and set(args.modes) - {"off"} else {}
        stock, duet = benchmark.alternate()
    off = request_cost("off")
    modes = {mode: compare(duet, stock, mode, request_cost(mode), off) for mode in args.modes}
    for key, entries in (("capacity", capacity), ("stages", stages)):
        for mode, entry in entries.items():
            modes[mode][key] = entry
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    return {
        "environment": environment(),
        "settings": settings | {"text_tokens": NUM_TEXT, "output_tokens": NUM_OUTPUT},
        "modes": modes,
        "passes": {"stock": stock, "duet": duet},
    }


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="visits to duet-server (%(default)s)")
    parser.add_argument("--num-prompts", type=int, default=24, help="requests of a pass (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=12, help="requests in flight (%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--block-size", type=int, default=32, help="of both KV caches, in tokens (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="let both servers compile; by default both run eagerly")
    parser.add_argument("--no-capacity", dest="capacity", action="store_false", help="skip the requests that fit")
    parser.add_argument("--no-stages", dest="stages", action="store_false", help="skip the stages' own time")
    parser.add_argument("--quick", action="store_true", help="one round of four requests, to see that it runs")
    parser.add_argument("--output", type=Path, help=f"JSON file ({RESULTS.name}/serving-<time>.json beside this file)")
    args = parser.parse_args(words)
    if args.quick:
        args.rounds, args.num_prompts, args.concurrency = 1, 4, 4
    return args


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives this process
    args = parse_args()
    result = run(args)
    output = args.output or RESULTS / f"serving-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(render(result))
    print(f"\nKept in {output}")


if __name__ == "__main__":
    main()
