"""The tables: of a checkpoint's points, and of lmms-eval's tasks beside the paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.accuracy.lmms_benchmarks import BENCHMARKS, PAPER_KEPT

SYNTHETIC_LEGEND = """\
{questions} held-out questions. Visual tokens are averaged over layers, as the server reported them; the budget is a
share of all of them, which a method meets from below. Requests/s and their gain over `off` are of one server, side by
side. Accuracy in %: mean over questions with its standard error, mean over types, how much of the uncompressed model's
the latter is, and by type. The last row is the answer that is right most often, given to every question of its type."""
LMMS_LEGEND = """\
By lmms-eval. Visual tokens are averaged over layers and requests, as the server reported them. GQA, SQA and TextVQA:
accuracy in %; POPE: F1 in %; MME: perception and cognition, summed. Kept is the mean over benchmarks of the share of
the uncompressed score, in %; in the paper, that of DUET on a model that was not trained under compression."""


def render(figures: Mapping[str, Any]) -> str:
    """All of a result's tables, as Markdown."""
    return _synthetic(figures) if figures["family"] == "synthetic" else _lmms(figures)


def _synthetic(figures: Mapping[str, Any]) -> str:
    types = list(figures["one_answer"]["by_type"])
    parts = [SYNTHETIC_LEGEND.format(questions=figures["questions"])]
    for name, visit in figures["checkpoints"].items():
        parts += [f"## {name}", _points_table(visit, figures["one_answer"], types)]
        parts += ["Left out:\n\n" + "\n".join(f"- {line}" for line in visit["left_out"])] if visit["left_out"] else []
    return "\n\n".join(parts)


def _points_table(visit: Mapping[str, Any], one_answer: Mapping[str, Any], types: Sequence[str]) -> str:
    headings = ["method", "budget", "visual tokens", "reduction", "requests/s", "gain", "mean", "macro", "kept", *types]
    rows = [
        [_name(point), f"{point['share']:.0%}", *_costs(point), *_accuracy(point["accuracy"], point["kept"], types)]
        for point in visit["points"]
    ]
    rows.append(["one answer", *[""] * 5, *_accuracy(one_answer, None, types)])
    return markdown(headings, rows)


def _name(point: Mapping[str, Any]) -> str:
    is_elsewhere = point["method"] == "off" and point["selection"] != "duet"
    return f"off, on the server of {point['selection']}" if is_elsewhere else point["method"]


def _costs(point: Mapping[str, Any]) -> list[str]:
    gain = [f"{point['requests_per_second']:.1f}", f"{point['gain']:.2f}x"]
    if point["layer_average"] is None:
        return ["", "", *gain]
    return [f"{point['layer_average']:.1f}", f"{point['reduction']:.1%}", *gain]


def _accuracy(accuracy: Mapping[str, Any], kept: float | None, types: Sequence[str]) -> list[str]:
    mean = f"{_percent(accuracy['mean'])} ± {_percent(accuracy['standard_error'])}"
    by_type = [_percent(accuracy["by_type"][name]) for name in types]
    return [mean, _percent(accuracy["macro"]), "" if kept is None else _percent(kept), *by_type]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _lmms(figures: Mapping[str, Any]) -> str:
    names = [benchmark.name for benchmark in BENCHMARKS]
    headings = ["compression", "visual tokens", *names, "kept", "kept in the paper"]
    paper = {benchmark.name: benchmark.paper for benchmark in BENCHMARKS}
    rows = [_lmms_row(entry) for entry in figures["settings"]]
    rows.append(["paper, uncompressed", "576.0", *_scores(paper), "", ""])
    return f"{LMMS_LEGEND}\n\n{markdown(headings, rows)}"


def _lmms_row(entry: Mapping[str, Any]) -> list[str]:
    name = entry["compression"] if isinstance(entry["compression"], str) else json.dumps(entry["compression"])
    tokens = "" if entry["layer_average"] is None else f"{entry['layer_average']:.1f}"
    shares = (entry["kept"], PAPER_KEPT.get(name))
    return [name, tokens, *_scores(entry["scores"]), *("" if share is None else _percent(share) for share in shares)]


def _scores(scores: Mapping[str, float]) -> list[str]:
    found = (scores.get(benchmark.name) for benchmark in BENCHMARKS)
    return ["" if score is None else f"{score:.1f}" for score in found]
