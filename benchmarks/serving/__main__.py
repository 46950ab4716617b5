"""Compares duet-server with stock vLLM on one machine: ``python -m benchmarks.serving``, on a GPU with ``--gpu``.

The two servers run in turn, never at the same time; stock vLLM runs first and last. Both get the same load from the
library behind ``vllm bench serve``. Prints tables, and stores all measurements in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from benchmarks.environment import environment
from benchmarks.models import MODEL_DIR_HELP, MODELS
from benchmarks.result_files import RESULTS, default_output, keep
from benchmarks.servers import Server, ServerFlags, ServerKind, running_server
from benchmarks.serving.capacity import EqualMemory, Pool
from benchmarks.serving.limits import RequestCost
from benchmarks.serving.load import Client, Load
from benchmarks.serving.profiles import CPU, GPU, Profile
from benchmarks.serving.report import Passes, compare, render, text_load_name
from duet_server.plan import presets

MODES = ("off", "light", "balanced", "aggressive")
NUM_TEXT = 64


@dataclass(slots=True)
class Visit:
    """The measurements during one run of a server."""

    pool: Pool
    passes: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)  # by concurrency and load
    seconds: float = 0.0


class Benchmark:
    """One run of the benchmark: its settings, and its measurements so far."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.profile: Profile = args.profile
        self.model = MODELS[args.model]
        self.shape = self.model.shape
        self.checkpoint = self.model.write_checkpoint(args.model_dir or directory)
        self.client = Client(self.checkpoint, self.model.picture_size)
        self.log = args.log or directory / "servers.log"
        self.started = time.monotonic()
        self.environment = environment()
        self.visits: dict[ServerKind, list[Visit]] = {"stock": [], "duet": []}
        self.capacity: dict[str, Any] = {}
        self.stages: dict[str, Any] = {}

    @property
    def ample_kv_bytes(self) -> int:
        return int(self.args.kv_gib * (1 << 30))

    def prewarm(self) -> None:
        """Start each server once, so that the next run with this model folder finds the compiled code."""
        for kind in get_args(ServerKind):
            with self._server(kind, self.ample_kv_bytes):
                pass

    def run(self) -> None:
        """Visit both servers in turn, with one more visit to stock vLLM; then run the optional measurements."""
        for kind in ("stock", *("duet", "stock") * self.args.rounds):
            if not self._has_time(kind):
                say(f"no time is left for another visit to {kind}")
                break
            self._visit(kind)
        if self.args.capacity:
            self._observe_capacity()
        if self.args.stages and set(self.args.modes) - {"off"}:
            self._time_stages()
        self._keep()

    def flags(self, kv_cache_bytes: int) -> ServerFlags:
        args = self.args
        return ServerFlags(
            self.checkpoint,
            self.model.dtype,
            kv_cache_bytes,
            args.block_size,
            self.profile.max_num_batched_tokens,
            enforce_eager=not args.compile,
            num_api_servers=args.api_servers,
            more=args.server_args,
        )

    def loads(self, kind: ServerKind) -> list[Load]:
        """The loads of a visit: every mode on duet-server; pictures, and each mode's text prompts, on stock vLLM."""
        modes, num_output = self.args.modes, self.profile.num_output
        if kind == "duet":
            return [Load(mode, NUM_TEXT, num_output, compression=mode) for mode in modes]
        texts = [
            Load(text_load_name(mode), self.cost(mode).text_prompt_tokens(), num_output, has_picture=False)
            for mode in modes
            if mode != "off"
        ]
        return [Load("pictures", NUM_TEXT, num_output), *texts]

    def cost(self, mode: str) -> RequestCost:
        return RequestCost(self.shape, presets(self.shape)[mode], NUM_TEXT, self.profile.num_output)

    def result(self) -> dict[str, Any]:
        modes: dict[str, Any] = {mode: self._mode(mode) for mode in self.args.modes}
        load = {concurrency: self._compare(concurrency, modes) for concurrency in sorted(self.args.concurrency)}
        settings = {name: value for name, value in vars(self.args).items() if name not in ("output", "log", "profile")}
        return {
            "environment": self.environment,
            "settings": settings
            | {"text_tokens": NUM_TEXT, "output_tokens": self.profile.num_output}
            | {"model_shape": asdict(self.shape), "flags": self.flags(self.ample_kv_bytes).as_argv()},
            "modes": modes,
            "load": load,
            "passes": {kind: [asdict(visit) for visit in visits] for kind, visits in self.visits.items()},
        }

    def _mode(self, mode: str) -> dict[str, Any]:
        """The values of a mode that do not depend on concurrency."""
        cost, off = self.cost(mode), self.cost("off")
        entry: dict[str, Any] = {
            "visual_tokens_layer_average": cost.layer_average,
            "flop_limit_prefill": off.prefill_flops / cost.prefill_flops,
            "flop_limit_request": off.request_flops / cost.request_flops,
        }
        stock, duet = self.visits["stock"], self.visits["duet"]
        if mode in self.capacity:
            entry["capacity"] = self.capacity[mode]
        elif stock and duet:
            entry["capacity"] = {"fits": EqualMemory(stock[0].pool, duet[0].pool).fits(cost, off)}
        if mode in self.stages:
            entry["stages"] = self.stages[mode]
        return entry

    def _compare(self, concurrency: int, modes: dict[str, Any]) -> dict[str, Any]:
        def passes(kind: ServerKind) -> list[Passes]:
            return [visit.passes.get(concurrency, {}) for visit in self.visits[kind]]

        compared = {
            mode: compare(passes("duet"), passes("stock"), mode, entry["flop_limit_request"])
            for mode, entry in modes.items()
        }
        return {mode: entry for mode, entry in compared.items() if entry is not None}

    def _has_time(self, kind: ServerKind) -> bool:
        """Whether a visit as long as the longest one of its kind would end within the limit."""
        longest = max((visit.seconds for visit in self.visits[kind]), default=0.0)
        limit = self.args.time_limit
        return limit is None or time.monotonic() - self.started + longest <= limit

    def _visit(self, kind: ServerKind) -> None:
        """Start a server and measure every load. The highest concurrency comes first: it warms up everything."""
        start, number = time.monotonic(), len(self.visits[kind])
        with self._server(kind, self.ample_kv_bytes) as server:
            visit = Visit(server.block_pool())
            self.visits[kind].append(visit)
            for concurrency in sorted(self.args.concurrency, reverse=True):
                passes = visit.passes.setdefault(concurrency, {})
                for load in self.loads(kind):
                    passes[load.name] = self._pass(server, load, concurrency, number)
                    visit.seconds = time.monotonic() - start
                    self._keep()
        visit.seconds = time.monotonic() - start

    def _pass(self, server: Server, load: Load, concurrency: int, number: int) -> dict[str, float]:
        num_prompts = max(self.args.min_prompts, self.args.waves * concurrency)
        num_warmup = max(2, num_prompts // 6)
        self.client.measure(server, load, num_warmup, concurrency, seed=f"warm-up of {concurrency}, {number}")
        result = self.client.measure(server, load, num_prompts, concurrency, seed=f"{concurrency}, {number}")
        rate, seconds = result["requests_per_second"], result["duration_s"]
        say(f"{server.kind} {load.name}, {concurrency} in flight: {rate:.3f} requests/s ({seconds:.1f} s)")
        return result

    def _observe_capacity(self) -> None:
        """Per mode: how many requests fit into the same scarce KV memory, and how many were seen answering at once."""
        off = self.cost("off")
        with self._server("stock", self.profile.scarce_kv_bytes) as server:
            stock = server.block_pool()
            fitting = EqualMemory(stock, stock).fits(off, off)["stock"]
            seen_stock = self._most_answering(server, Load("pictures", NUM_TEXT, self.profile.num_output), fitting)
        with self._server("duet", self.profile.scarce_kv_bytes) as server:
            memory = EqualMemory(stock, server.block_pool())
            for load in self.loads("duet"):
                fits = memory.fits(self.cost(load.name), off)
                seen = {"stock": seen_stock, "duet": self._most_answering(server, load, fits["duet"])}
                self.capacity[load.name] = {"fits": fits, "observed": seen}

    @contextlib.contextmanager
    def _server(self, kind: ServerKind, kv_cache_bytes: int) -> Iterator[Server]:
        say(f"starting {kind} with {kv_cache_bytes >> 20} MiB of KV cache")
        start = time.monotonic()
        with running_server(kind, self.flags(kv_cache_bytes), self.log) as server:
            say(f"{kind} answers after {time.monotonic() - start:.1f} s")
            yield server

    def _most_answering(self, server: Server, load: Load, fitting: int) -> int:
        most = self.client.most_answering(server, load, num_prompts=2 * fitting, seed=0)
        say(f"{server.kind} {load.name}: {most} answering at once, {fitting} fit")
        return most

    def _time_stages(self) -> None:
        """Measure both stages' own time in a separate process, whose engine compiles if the servers do."""
        say("timing the stages")
        modes = [mode for mode in self.args.modes if mode != "off"]
        command = [sys.executable, "-m", "benchmarks.stages", "--model", self.args.model]
        command += ["--num-text", str(NUM_TEXT), "--rounds", "1" if self.args.quick else "5", "--modes", *modes]
        command += ["--compile"] if self.args.compile else []
        command += ["--model-dir", str(self.checkpoint)]
        with self.log.open("a") as log:
            answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
        self.stages = json.loads(answer.stdout.splitlines()[-1])["shares"]

    def _keep(self) -> None:
        """Write what has been measured so far."""
        keep(self.result(), self.args.output)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. ``--gpu`` and ``--quick`` change the defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__, allow_abbrev=False)
    optional = argparse.BooleanOptionalAction
    parser.add_argument(
        "--gpu", action="store_true", help="LLaVA-1.5-7B on a CUDA GPU; `--gpu --help` shows its defaults"
    )
    parser.add_argument("--model", choices=MODELS, help="(%(default)s)")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help=MODEL_DIR_HELP)
    parser.add_argument(
        "--prewarm", action="store_true", help="only start each server once, so that later runs start faster"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--concurrency", type=int, nargs="+", help="requests in flight (%(default)s)")
    parser.add_argument("--waves", type=int, help="requests of a pass, per request in flight (%(default)s)")
    parser.add_argument("--min-prompts", type=int, help="fewest requests of a pass (%(default)s)")
    parser.add_argument("--rounds", type=int, help="visits to duet-server (%(default)s)")
    parser.add_argument(
        "--time-limit", type=float, metavar="S", help="start no visit that would end after S seconds (%(default)s)"
    )
    parser.add_argument("--block-size", type=int, help="tokens per block of both KV caches (%(default)s)")
    parser.add_argument("--kv-gib", type=float, metavar="G", help="size of both KV caches, in GiB (%(default)s)")
    parser.add_argument("--compile", action=optional, help="let both servers compile and use CUDA graphs (%(default)s)")
    parser.add_argument("--api-servers", type=int, metavar="N", help="API server processes (%(default)s)")
    parser.add_argument("--server-args", type=shlex.split, default=[], help="more flags for both, as one quoted string")
    parser.add_argument("--capacity", action=optional, help="observe concurrency in scarce KV memory (%(default)s)")
    parser.add_argument("--stages", action=optional, help="measure the stages' own time (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of a few requests, to check that it runs")
    parser.add_argument("--output", type=Path, help=f"JSON file ({RESULTS.name}/serving-<time>.json of this checkout)")
    parser.add_argument("--log", type=Path, help="file for the servers' output")
    profile = GPU if "--gpu" in argv else CPU
    parser.set_defaults(profile=profile, **profile.defaults)
    if "--quick" in argv:
        parser.set_defaults(concurrency=[4], rounds=1, waves=1, min_prompts=4)
    args = parser.parse_args(argv)
    if args.prewarm and args.model_dir is None:
        parser.error("--prewarm needs --model-dir: it only helps later runs with the same folder")
    if args.output is None:
        args.output = default_output("serving-gpu" if args.gpu else "serving")
    return args


def has_cuda() -> bool:
    """Whether vLLM would run on a GPU."""
    from vllm.platforms import current_platform

    return current_platform.is_cuda()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped as well
    args = parse_args(sys.argv[1:])
    if args.gpu and not has_cuda():
        print("Nothing was measured: there is no CUDA GPU, or vLLM was not built for one.")
        return
    with tempfile.TemporaryDirectory(prefix="duet-benchmark-") as directory:
        benchmark = Benchmark(args, Path(directory))
        if args.prewarm:
            benchmark.prewarm()
            return
        try:
            benchmark.run()
        finally:
            print(render(benchmark.result()))
    print(f"\nKept in {args.output}")


if __name__ == "__main__":
    main()
