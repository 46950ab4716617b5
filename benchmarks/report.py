"""From passes to ratios, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.limits import RequestCost

# name, heading, whether more is better
TIMED = (
    ("requests_per_second", "requests/s", True),
    ("ttft_p50_ms", "TTFT p50, ms", False),
    ("ttft_p99_ms", "TTFT p99, ms", False),
    ("tpot_p50_ms", "TPOT p50, ms", False),
    ("tpot_p99_ms", "TPOT p99, ms", False),
)
Pass = dict[str, float]  # a metric's name and value
Visit = dict[str, Pass]  # to one running server: by the load's name


def gain(value: float, reference: float, more_is_better: bool) -> float:
    """How many times better ``value`` is than ``reference``."""
    return value / reference if more_is_better else reference / value


def compare(duet: Sequence[Visit], stock: Sequence[Visit], mode: str, cost: RequestCost, off: RequestCost) -> Any:
    """A mode against stock vLLM, metric by metric.

    Each visit to duet-server lies between two to stock vLLM, with whose mean it is compared, so that a machine that
    slows down or speeds up favours neither; what is reported is the median over visits.

    Args:
        duet: visits to duet-server.
        stock: visits to stock vLLM, one more.
        mode: the preset.
        cost: a request under this preset.
        off: the same request uncompressed.
    """
    limit = off.request_flops / cost.request_flops
    metrics = {name: _compare_metric(duet, stock, mode, name, more, limit) for name, _, more in TIMED}
    return {
        "visual_tokens_layer_average": cost.layer_average,
        "flop_limit_prefill": off.prefill_flops / cost.prefill_flops,
        "flop_limit_request": limit,
        "metrics": metrics,
    }


def _compare_metric(
    duet: Sequence[Visit], stock: Sequence[Visit], mode: str, metric: str, more_is_better: bool, flop_limit: float
) -> dict[str, float]:
    ours = [visit[mode][metric] for visit in duet]
    pictures = _between(stock, "pictures", metric)
    text = _between(stock, text_load_name(mode), metric)
    gains = [gain(value, reference, more_is_better) for value, reference in zip(ours, pictures, strict=True)]
    of_text = [gain(value, reference, more_is_better) for value, reference in zip(ours, text, strict=True)]
    return {
        "stock": statistics.median(pictures),
        "duet": statistics.median(ours),
        "text": statistics.median(text),
        "gain": statistics.median(gains),
        "gain_least": min(gains),
        "gain_most": max(gains),
        "of_flop_limit": statistics.median(gains) / flop_limit,
        "of_text": statistics.median(of_text),
    }


def _between(stock: Sequence[Visit], load: str, metric: str) -> list[float]:
    """The mean of each visit and the next."""
    values = [visit[load][metric] for visit in stock]
    return [(before + after) / 2 for before, after in pairwise(values)]


def text_load_name(mode: str) -> str:
    """The load of text prompts that sets a mode's measured limit; uncompressed, the pictures themselves do."""
    return "pictures" if mode == "off" else f"text-{mode}"


def render(result: dict[str, Any]) -> str:
    """The result as text, a block for each mode."""
    return "\n\n".join([_LEGEND, *(_render_mode(mode, entry) for mode, entry in result["modes"].items())])


_LEGEND = """\
gain           how many times better than stock vLLM with the same pictures (least to most over the rounds)
of FLOP limit  that gain by the ratio of FLOPs, decoding included
of text limit  against stock vLLM on text prompts as long as the layer average and the text
In the rows on KV memory the limit is stock vLLM's cache with that text prompt, and no FLOPs are compared."""


def _render_mode(mode: str, entry: dict[str, Any]) -> str:
    average, prefill, request = (
        entry[name] for name in ("visual_tokens_layer_average", "flop_limit_prefill", "flop_limit_request")
    )
    title = f"{mode}: {average:.1f} visual tokens a layer; FLOPs {prefill:.2f}x fewer to prefill, {request:.2f}x in all"
    columns = _row("", "stock", "duet", "text", "gain", "(range)", "of FLOP", "of text")
    rows = [_metric_row(heading, entry["metrics"][name]) for name, heading, _ in TIMED]
    return "\n".join(
        [title, columns, *rows, *_capacity_rows(entry.get("capacity")), *_stage_lines(entry.get("stages"))]
    )


def _row(heading: str, *cells: str) -> str:
    widths = (9, 9, 9, 9, 14, 9, 9)
    return f"  {heading:28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _metric_row(heading: str, row: dict[str, float]) -> str:
    values = (f"{row[name]:.4g}" for name in ("stock", "duet", "text"))
    spread = f"({row['gain_least']:.2f}-{row['gain_most']:.2f})"
    return _row(heading, *values, f"{row['gain']:.2f}x", spread, f"{row['of_flop_limit']:.2f}", f"{row['of_text']:.2f}")


def _capacity_rows(capacity: dict[str, Any] | None) -> list[str]:
    if capacity is None:
        return []
    fits, seen = capacity["fits"], capacity["observed"]
    counts = (str(fits[name]) for name in ("stock", "duet", "text"))
    gain_fits, gain_seen = (f"{count['duet'] / count['stock']:.2f}x" for count in (fits, seen))
    return [
        _row("requests that fit (blocks)", *counts, gain_fits, "", "", f"{fits['duet'] / fits['text']:.2f}"),
        _row("most seen answering at once", str(seen["stock"]), str(seen["duet"]), "", gain_seen, "", "", ""),
    ]


def _stage_lines(stages: dict[str, float] | None) -> list[str]:
    if stages is None:
        return []
    shares = f"stage 1 {stages['stage1']:.2%}, stage 2 {stages['stage2']:.2%}, the whole prefill {stages['model']:.1%}"
    return [f"  time by the uncompressed prefill's: {shares}"]
