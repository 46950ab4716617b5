"""The five benchmarks that the paper reports on LLaVA-1.5-7B, as lmms-eval's tasks, and the paper's own numbers.

Source: DUET-VLM, arXiv 2602.18846.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# It reaches into what filelock 4 has moved.
LMMS_EVAL = ("lmms-eval==0.7.3", "filelock<4")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """``metrics`` are lmms-eval's, summed and times ``scale``; ``paper`` is the uncompressed model's score there."""

    name: str
    task: str
    metrics: tuple[str, ...]
    scale: float
    paper: float

    def score(self, metrics: Mapping[str, Any]) -> float:
        """From a task's entry in lmms-eval's results, whose keys are ``<metric>,<filter>``."""
        return self.scale * sum(metrics[f"{metric},none"] for metric in self.metrics)


BENCHMARKS = (
    Benchmark("GQA", "gqa", ("exact_match",), 100, 61.9),
    Benchmark("POPE", "pope", ("pope_f1_score",), 100, 85.9),
    Benchmark("SQA", "scienceqa_img", ("exact_match",), 100, 69.5),
    Benchmark("TextVQA", "textvqa_val", ("exact_match",), 100, 58.2),
    Benchmark("MME", "mme", ("mme_perception_score", "mme_cognition_score"), 1, 1862),
)
# Mean over the five of what is kept of the uncompressed score, without training under compression.
PAPER_KEPT = {"off": 1.0, "light": 0.990, "balanced": 0.981, "aggressive": 0.954}
# LLaVA's evaluation of TextVQA shows the model what a text recogniser has read; lmms-eval's does not by default.
TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "textvqa_val": {
        "pre_prompt": "",
        "post_prompt": "\nAnswer the question using a single word or phrase.",
        "ocr": True,
    }
}


def task_config(name: str) -> str | dict[str, Any]:
    """What lmms-eval is to run for a task: its name, or its name with LLaVA's own options."""
    if name not in TASK_OPTIONS:
        return name
    return {"task": name, "lmms_eval_specific_kwargs": {"default": TASK_OPTIONS[name]}}


def kept(scores: Mapping[str, float], off: Mapping[str, float]) -> float | None:
    """Mean over benchmarks of the share of the uncompressed score; None where one of those is 0."""
    return statistics.mean(scores[name] / off[name] for name in scores) if all(off.values()) else None
