"""Markdown tables: the points of a checkpoint, and lmms-eval's tasks next to the paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy.lmms_benchmarks import BENCHMARKS, PAPER_KEPT
from benchmarks.accuracy.methods import DUET, OFF

SYNTHETIC_LEGEND = """\
{questions} held-out questions. Visual tokens are averaged over layers, as the server reports them. The budget is a
share of all visual tokens, which no method exceeds. PyramidDrop and FastV drop at their own layers, and keep fewer
tokens there until they meet the budget. Requests/s and the gain over `off` (median over blocks, minimum to maximum)
come from one server on which the settings take turns. Random keep and uniform pooling also spend time on scores that
they do not use. Accuracy is the mean over question types, in %. Kept is its share of the uncompressed accuracy, in %.
Lead is the accuracy minus that of "{duet}" at the same budget, in points. These three have standard errors; for kept
and lead, they come from the differences between both answers to each question. The last columns are the accuracy of
each type. The last row is the majority class: every question gets the answer that is right most often for its type."""
LMMS_LEGEND = """\
Measured with lmms-eval. Visual tokens are averaged over layers and requests, as the server reports them. GQA, SQA and
TextVQA: accuracy in %; POPE: F1 in %; MME: perception plus cognition. Kept is the share of the uncompressed score,
averaged over benchmarks, in %. The paper's values are for DUET on a model that was not trained under compression."""


def render(figures: Mapping[str, Any]) -> str:
    """All of a result's tables, as Markdown."""
    return _synthetic(figures) if figures["family"] == "synthetic" else _lmms(figures)


def _synthetic(figures: Mapping[str, Any]) -> str:
    types = list(figures["one_answer"]["by_type"])
    parts = [SYNTHETIC_LEGEND.format(questions=figures["questions"], duet=DUET)]
    for name, visit in figures["checkpoints"].items():
        parts += [f"## {name}", _points_table(visit, figures["one_answer"], types)]
        parts += ["Left out:\n\n" + "\n".join(f"- {line}" for line in visit["left_out"])] if visit["left_out"] else []
    return "\n\n".join(parts)


def _points_table(visit: Mapping[str, Any], one_answer: Mapping[str, Any], types: Sequence[str]) -> str:
    costs = ["visual tokens", "answer tokens", "requests/s", "gain"]
    headings = ["method", "budget", *costs, "accuracy", "kept", "lead", *types]
    rows = [
        [_name(point), f"{point['share']:.0%}", *_costs(point), *_accuracy(point, types)] for point in visit["points"]
    ]
    rows.append(["one answer", *[""] * 5, *_accuracy({"accuracy": one_answer}, types)])
    return markdown(headings, rows)


def _name(point: Mapping[str, Any]) -> str:
    is_elsewhere = point["method"] == "off" and point["selection"] != "duet"
    return f"off, on the server of {point['selection']}" if is_elsewhere else point["method"]


def _costs(point: Mapping[str, Any]) -> list[str]:
    tokens = ["" if point[key] is None else f"{point[key]:.1f}" for key in ("layer_average", "answer_tokens")]
    gain = "{:.2f}x ({:.2f} to {:.2f})".format(point["gain"], *point["gain_range"])
    return [*tokens, f"{point['requests_per_second']:.1f}", gain]


def _accuracy(point: Mapping[str, Any], types: Sequence[str]) -> list[str]:
    found, kept, lead = point["accuracy"], "", ""
    if point.get("kept") is not None and point["method"] != OFF:
        kept = f"{_percent(point['kept'])} ± {_percent(point['kept_error'])}"
    if point.get("lead") is not None and point["method"] != DUET:
        lead = f"{100 * point['lead']['mean']:+.1f} ± {_percent(point['lead']['standard_error'])}"
    mean = f"{_percent(found['mean'])} ± {_percent(found['standard_error'])}"
    return [mean, kept, lead, *(_percent(found["by_type"][name]) for name in types)]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is aligned left, the others right."""
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _lmms(figures: Mapping[str, Any]) -> str:
    names = [benchmark.name for benchmark in BENCHMARKS]
    headings = ["compression", "visual tokens", *names, "kept", "kept in the paper"]
    paper = {benchmark.name: benchmark.paper for benchmark in BENCHMARKS}
    rows = [_lmms_row(entry, is_whole=figures["limit"] is None) for entry in figures["settings"]]
    rows.append(["paper, uncompressed", "576.0", *_scores(paper), "", ""])
    return f"{LMMS_LEGEND}\n\n{markdown(headings, rows)}"


def _lmms_row(entry: Mapping[str, Any], is_whole: bool) -> list[str]:
    """One row. It has the paper's mean only if all questions of the same five benchmarks were asked."""
    name = entry["compression"] if isinstance(entry["compression"], str) else json.dumps(entry["compression"])
    tokens = "" if entry["layer_average"] is None else f"{entry['layer_average']:.1f}"
    compares = is_whole and entry["kept"] is not None and len(entry["scores"]) == len(BENCHMARKS)
    shares = (entry["kept"], PAPER_KEPT.get(name) if compares else None)
    return [name, tokens, *_scores(entry["scores"]), *("" if share is None else _percent(share) for share in shares)]


def _scores(scores: Mapping[str, float]) -> list[str]:
    found = (scores.get(benchmark.name) for benchmark in BENCHMARKS)
    return ["" if score is None else f"{score:.1f}" for score in found]
