"""Measures both stages' own time as a share of the uncompressed prefill: ``python -m benchmarks.stages``.

An engine in this process, eager or compiled (``--compile``), serves the same requests uncompressed and under each
preset, a few at a time. Clocks around the stages' functions measure the stages, and clocks around the model measure the
prefill. On a GPU, they measure the time between events in its stream, so that the host never waits inside a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch

from benchmarks.models import MODEL_DIR_HELP, MODELS
from benchmarks.models.base import BenchmarkModel
from duet_server.engine.timer import Timer
from duet_server.plan import CompressionSettings, kv_bytes, make_layout, make_plan, presets
from duet_server.plan.wire import encode_extra_args, encode_processor_kwargs

# (stage, where the engine looks the function up, function). An uncompressed step (off) calls only the last one. Stage 1
# also scores, by a method of the model's backbone.
STAGE_FUNCTIONS = (
    ("stage1", "duet_server.engine.model", "cut"),
    ("stage2", "duet_server.engine.text_stage", "surviving_rows"),
    ("stage2", "duet_server.engine.text_stage", "gather_rows"),
    ("stage2", "duet_server.engine.current_step:CurrentStep", "begin"),
)
MODEL_METHODS = ("embed_multimodal", "forward")
NAMES = ("stage1", "stage2", "model")
TEXT_BEFORE = 8  # text tokens before the picture
MAX_STEP_TOKENS = 4096


class Clocks(Timer):
    """Seconds spent in wrapped functions, by name. Nested functions of the same name count once.

    Args:
        on_gpu: whether to measure the current stream's time instead of the host's.
    """

    def __init__(self, on_gpu: bool) -> None:
        super().__init__(on_gpu)
        self._running: set[str] = set()
        self._spans: list[tuple[str, Any, Any]] = []  # name, start, end

    def wrap(self, name: str, owner: Any, attribute: str) -> None:
        """Put a clock around ``owner.attribute``. It is never removed."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if name in self._running:
                return function(*args, **kwargs)
            self._running.add(name)
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._spans.append((name, start, self._now()))
                self._running.remove(name)

        setattr(owner, attribute, timed)

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        spans, self._spans = self._spans, []
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds: defaultdict[str, float] = defaultdict(float)
        for name, start, end in spans:
            seconds[name] += self._seconds(start, end)
        return dict(seconds)


def measure_stages(
    llm: Any, model: BenchmarkModel, modes: Sequence[str], *, num_text: int, batch_size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Per mode, the time of each stage and of the prefill, relative to the uncompressed prefill: medians over rounds.

    Args:
        llm: an engine in this process that serves the model.
        model: the model that it serves.
        modes: names of presets.
        num_text: text tokens of a prompt.
        batch_size: requests prefilled together.
        rounds: number of rounds; each one times the uncompressed prefill again.
    """
    settings, prompts = presets(model.shape), Prompts(model, num_text)
    shares: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    clocks = Clocks(on_gpu=torch.cuda.is_available())
    _wrap(clocks, llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model)
    for round_idx in range(-1, rounds):  # the first round is a warm-up
        uncompressed = _prefill(llm, clocks, prompts, settings["off"], batch_size)["model"]
        for mode in modes:
            seconds = _prefill(llm, clocks, prompts, settings[mode], batch_size)
            if round_idx >= 0:
                shares[mode].append({name: seconds.get(name, 0.0) / uncompressed for name in NAMES})
    return {mode: {name: statistics.median(s[name] for s in shares[mode]) for name in NAMES} for mode in modes}


def start_engine(model: BenchmarkModel, checkpoint: Path, *, compiled: bool) -> Any:
    """An engine in this process. vLLM compiles its segments, or runs them eagerly."""
    os.environ |= {"VLLM_PLUGINS": "duet", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM

    token_layers = 2 * MAX_STEP_TOKENS * model.shape.decoder.num_layers
    return LLM(
        str(checkpoint),
        load_format="dummy",
        dtype=model.dtype,
        enforce_eager=not compiled,
        max_model_len=2048,
        max_num_batched_tokens=MAX_STEP_TOKENS,
        kv_cache_memory_bytes=kv_bytes(model.shape, token_layers, getattr(torch, model.dtype).itemsize),
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
    )


def _wrap(clocks: Clocks, model: Any) -> None:
    for stage, owner, function in STAGE_FUNCTIONS:
        clocks.wrap(stage, resolve_name(owner), function)
    clocks.wrap("stage1", type(model.backbone), "score")
    for method in MODEL_METHODS:
        clocks.wrap("model", type(model), method)


class Prompts:
    """Random prompts of one picture."""

    def __init__(self, model: BenchmarkModel, num_text: int) -> None:
        self.model = model
        self.shape = model.shape
        self.num_text = num_text
        self.rng = np.random.default_rng(0)

    def make(self, settings: CompressionSettings) -> dict[str, Any]:
        from PIL import Image

        side = self.model.picture_size
        text = [int(token) for token in self.rng.integers(40, 200, self.num_text)]
        return {
            "prompt_token_ids": [*text[:TEXT_BEFORE], self.model.image_token, *text[TEXT_BEFORE:]],
            "multi_modal_data": {"image": Image.fromarray(self.rng.integers(0, 256, (side, side, 3), dtype=np.uint8))},
            "mm_processor_kwargs": encode_processor_kwargs(settings, self.shape),
        }


def _prefill(
    llm: Any, clocks: Clocks, prompts: Prompts, settings: CompressionSettings, batch_size: int
) -> dict[str, float]:
    """Seconds by name for one batch, up to its first output tokens."""
    from vllm import SamplingParams

    clocks.take()
    # All text tokens guide. A real question has fewer salient ones, so stage 2's share is an upper bound.
    entering = settings.num_entering(prompts.shape.num_patches)
    layout = make_layout(prompts.num_text + entering, [(TEXT_BEFORE, TEXT_BEFORE + entering)])
    plan = make_plan(layout, settings.keep, ())
    extra_args = encode_extra_args(plan, "all") if settings.drops else None
    sampling = SamplingParams(temperature=0, max_tokens=1, extra_args=extra_args)
    llm.generate([prompts.make(settings) for _ in range(batch_size)], sampling, use_tqdm=False)
    return clocks.take()


def main() -> None:
    """Print the shares, and whether the engine was compiled, as JSON in the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="small", help="(%(default)s)")
    parser.add_argument("--modes", nargs="+", default=["light", "balanced", "aggressive"], metavar="PRESET")
    parser.add_argument("--num-text", type=int, default=64, help="text tokens of a prompt (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="requests prefilled together (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compile", action="store_true", help="let vLLM compile the segments; otherwise, they run eagerly"
    )
    parser.add_argument("--model-dir", type=Path, help=MODEL_DIR_HELP)
    args = parser.parse_args()
    model = MODELS[args.model]
    with tempfile.TemporaryDirectory() as scratch:
        llm = start_engine(model, model.write_checkpoint(args.model_dir or Path(scratch)), compiled=args.compile)
        shares = measure_stages(
            llm, model, args.modes, num_text=args.num_text, batch_size=args.batch_size, rounds=args.rounds
        )
    print(json.dumps({"compiled": args.compile, "shares": shares}), flush=True)


if __name__ == "__main__":
    main()
