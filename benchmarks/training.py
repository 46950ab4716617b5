"""Measures the time of a training step, uncompressed and compressed, on the same batches in one run.

Settings take turns on every batch, so that other load on the machine affects all of them equally.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig

from benchmarks import check_cli
from benchmarks.models import LLAVAS
from benchmarks.models.llava import LlavaModel
from benchmarks.result_files import table
from duet_server.plan import CompressionSettings, llava_shape, prefill_flops, resolve_settings
from duet_training.attention import SDPA_FLOAT32
from duet_training.modeling import IGNORED, DuetLlava
from duet_training.random_llava import SPECIAL_TOKENS

PRESETS = ("off", "light", "balanced", "aggressive")
PAPER = {"light": 0.26, "balanced": 0.31, "aggressive": 0.36}
"""The share of LLaVA-1.5-7B's training time that is saved, as reported by DUET-VLM (arXiv 2602.18846)."""
IMAGE, NUM_ANSWER = SPECIAL_TOKENS.index("<image>"), 64
Batch = dict[str, torch.Tensor]


def make_model(sizes: LlavaModel, device: torch.device) -> DuetLlava:
    """A model with random weights. Projector and decoder are trained, as in LLaVA-1.5's fine-tuning."""
    config = LlavaConfig(
        vision_config=dict(sizes.vision), text_config=dict(sizes.text), image_token_index=IMAGE, dtype=sizes.dtype
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = DuetLlava(config).to(getattr(torch, sizes.dtype)).train()
    model.set_attn_implementation("sdpa" if device.type == "cuda" else SDPA_FLOAT32)
    model.model.vision_tower.requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def make_batch(model: DuetLlava, num_samples: int, num_text: int, num_entering: int, seed: int) -> Batch:
    """Pictures of noise, each with a text whose last tokens are learned. They are the same for every setting."""
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vision_config.image_size
    text = torch.randint(len(SPECIAL_TOKENS), 200, (num_samples, num_text), generator=generator)
    ids = torch.cat([text[:, :8], torch.full((num_samples, num_entering), IMAGE), text[:, 8:]], dim=1)
    labels = ids.clone()
    labels[:, :-NUM_ANSWER] = IGNORED
    pixels = torch.randn(num_samples, 3, size, size, generator=generator)
    batch = {"input_ids": ids, "labels": labels, "pixel_values": pixels.to(model.dtype)}
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def step_seconds(
    model: DuetLlava, optimizer: torch.optim.Optimizer, batch: Batch, settings: CompressionSettings
) -> float:
    """Seconds of a forward pass, a backward pass and an optimizer step."""
    _wait(model.device)
    start = time.perf_counter()
    with torch.autocast(model.device.type, torch.bfloat16):
        loss = model(**batch, compression=settings).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    _wait(model.device)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of each preset, on the same batches."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(LLAVAS[args.model], device)
    shape = llava_shape(model.config, model.boundaries)
    settings = {name: resolve_settings(name, shape) for name in PRESETS}
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=device.type == "cuda")
    seconds: dict[str, list[float]] = {name: [] for name in PRESETS}
    for step in range(args.steps + 1):  # the first step is a warm-up
        for name in PRESETS:
            entering = settings[name].num_entering(shape.num_patches)
            batch = make_batch(model, args.batch_size, args.text, entering, args.seed + step)
            seconds[name].append(step_seconds(model, optimizer, batch, settings[name]))
        print(f"{step}/{args.steps}", {name: round(times[-1], 3) for name, times in seconds.items()}, flush=True)
    flops = {name: _flops(shape, chosen, args.text) for name, chosen in settings.items()}
    averages = {name: chosen.layer_average(shape) for name, chosen in settings.items()}
    return {"seconds": {name: times[1:] for name, times in seconds.items()}, "flops": flops, "averages": averages}


def check(args: argparse.Namespace, log: Path) -> tuple[dict[str, Any], list[str]]:
    figures = measure(args)
    savings = {name: saved(figures["seconds"], name) for name in PRESETS[1:]}
    print(report(figures, savings))
    return {**figures, "saved": savings}, []


def saved(seconds: dict[str, list[float]], name: str) -> list[float]:
    """The saved share of an uncompressed step's time, compared batch by batch: median, minimum and maximum."""
    shares = [1 - ours / off for ours, off in zip(seconds[name], seconds["off"], strict=True)]
    return [statistics.median(shares), min(shares), max(shares)]


def report(figures: dict[str, Any], savings: dict[str, Sequence[float]]) -> str:
    headings = [
        "",
        "layer average",
        "time saved per step",
        "min to max",
        "forward FLOPs saved",
        "paper, LLaVA-1.5-7B",
    ]
    rows = []
    for name, (median, least, most) in savings.items():
        flops = 1 - figures["flops"][name] / figures["flops"]["off"]
        cells = [f"{figures['averages'][name]:g}", f"{median:.0%}", f"{least:.0%} to {most:.0%}", f"{flops:.0%}"]
        rows.append([name, *cells, f"{PAPER[name]:.0%}"])
    return table(headings, rows)


def _flops(shape: Any, settings: CompressionSettings, num_text: int) -> float:
    """FLOPs of one sample's forward pass, including tower and projector."""
    counts = settings.segment_counts(shape.num_patches)
    return prefill_flops(shape, [count + num_text for count in counts], [shape.num_patches], counts[0])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = check_cli.parser("python -m benchmarks.training", "training", __doc__)
    parser.add_argument("--model", choices=LLAVAS, default="small", help="model whose sizes are used (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per step (%(default)s)")
    parser.add_argument("--text", type=int, default=160, help="text tokens per sample (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="measured batches, after one for warm-up (%(default)s)")
    check_cli.run("training", parser.parse_args(), check)


if __name__ == "__main__":
    main()
