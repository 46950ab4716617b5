"""The five benchmarks that the paper reports for LLaVA-1.5-7B, as lmms-eval tasks, with the paper's numbers.

Source: DUET-VLM, arXiv 2602.18846.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# lmms-eval uses internals of filelock that version 4 has moved.
LMMS_EVAL = ("lmms-eval==0.7.3", "filelock<4")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The score is the sum of lmms-eval's ``metrics`` times ``scale``; ``paper`` is the paper's uncompressed score."""

    name: str
    task: str
    metrics: tuple[str, ...]
    scale: float
    paper: float

    def score(self, metrics: Mapping[str, Any]) -> float:
        """The score from a task's entry in lmms-eval's results, whose keys are ``<metric>,<filter>``."""
        return self.scale * sum(metrics[f"{metric},none"] for metric in self.metrics)


BENCHMARKS = (
    Benchmark("GQA", "gqa", ("exact_match",), 100, 61.9),
    Benchmark("POPE", "pope", ("pope_f1_score",), 100, 85.9),
    Benchmark("SQA", "scienceqa_img", ("exact_match",), 100, 69.5),
    Benchmark("TextVQA", "textvqa_val", ("exact_match",), 100, 58.2),
    Benchmark("MME", "mme", ("mme_perception_score", "mme_cognition_score"), 1, 1862),
)
# Kept share of the uncompressed score, averaged over the five benchmarks, without training under compression.
PAPER_KEPT = {"off": 1.0, "light": 0.990, "balanced": 0.981, "aggressive": 0.954}
# LLaVA's evaluation of TextVQA adds OCR text to the prompt; lmms-eval does not do so by default.
TASK_OPTIONS: dict[str, dict[str, Any]] = {
    "textvqa_val": {
        "pre_prompt": "",
        "post_prompt": "\nAnswer the question using a single word or phrase.",
        "ocr": True,
    }
}


def task_config(name: str) -> str | dict[str, Any]:
    """The task for lmms-eval: its name, or its name with the options of LLaVA's own evaluation."""
    if name not in TASK_OPTIONS:
        return name
    return {"task": name, "lmms_eval_specific_kwargs": {"default": TASK_OPTIONS[name]}}


def kept(scores: Mapping[str, float], off: Mapping[str, float]) -> float | None:
    """Kept share of the uncompressed score, averaged over benchmarks; None if an uncompressed score is 0."""
    return statistics.mean(scores[name] / off[name] for name in scores) if all(off.values()) else None
