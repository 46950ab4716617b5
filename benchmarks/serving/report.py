"""Computes ratios from passes, and renders them as tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# name, heading, unit, whether more is better
TIMED = (
    ("requests_per_second", "requests/s", "", True),
    ("ttft_p50_ms", "TTFT p50", " ms", False),
    ("ttft_p99_ms", "TTFT p99", " ms", False),
    ("tpot_p50_ms", "TPOT p50", " ms", False),
    ("tpot_p99_ms", "TPOT p99", " ms", False),
)
BUSY = ("client_cores", "api_cores", "engine_cores")
Pass = Mapping[str, float]  # a metric's name and value
Passes = Mapping[str, Pass]  # passes of one visit to a server at one concurrency, by the load's name


def gain(value: float, reference: float, more_is_better: bool) -> float:
    """How many times better ``value`` is than ``reference``."""
    return value / reference if more_is_better else reference / value


def compare(duet: Sequence[Passes], stock: Sequence[Passes], mode: str, flop_limit: float) -> dict[str, Any] | None:
    """Compare a mode with stock vLLM, metric by metric; None if there is nothing to compare yet.

    Each visit to duet-server is compared with the mean of the visits to stock vLLM before and after it, so that a
    machine that slows down or speeds up favours neither. The result is the median over visits.

    Args:
        duet: visits to duet-server.
        stock: visits to stock vLLM, one more unless the run ended early.
        mode: the preset.
        flop_limit: FLOPs of an uncompressed request divided by the FLOPs of a request in this mode.
    """
    pairs = [(visit[mode], stock[idx : idx + 2]) for idx, visit in enumerate(duet) if mode in visit]
    if not pairs:
        return None
    metrics = {name: _compare_metric(pairs, mode, name, more, flop_limit) for name, _, _, more in TIMED}
    return metrics | {name: _busy(pairs, name) for name in BUSY}


def _compare_metric(
    pairs: Sequence[tuple[Pass, Sequence[Passes]]], mode: str, metric: str, more_is_better: bool, flop_limit: float
) -> dict[str, float]:
    ours = [passed[metric] for passed, _ in pairs]
    pictures = [_mean(around, "pictures", metric) for _, around in pairs]
    text = [_mean(around, text_load_name(mode), metric) for _, around in pairs]
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


def _busy(pairs: Sequence[tuple[Pass, Sequence[Passes]]], name: str) -> dict[str, float]:
    return {
        "stock": statistics.median(_mean(around, "pictures", name) for _, around in pairs),
        "duet": statistics.median(passed[name] for passed, _ in pairs),
    }


def _mean(visits: Sequence[Passes], load: str, metric: str) -> float:
    """The mean over the visits that measured this load."""
    return statistics.mean(visit[load][metric] for visit in visits if load in visit)


def text_load_name(mode: str) -> str:
    """The load of text prompts that is a mode's measured limit; for ``off``, this is the load of pictures."""
    return "pictures" if mode == "off" else f"text-{mode}"


def render(result: Mapping[str, Any]) -> str:
    """The result as text: a table for each concurrency, then one for the values that do not depend on it."""
    tables = [_load_table(concurrency, modes) for concurrency, modes in result["load"].items() if modes]
    return "\n\n".join([_LEGEND, *tables, _mode_table(result["modes"])])


_LEGEND = """\
stock is vLLM with the same pictures. The other rows show how many times better each mode is than stock. For requests/s,
they show the value, the gain, and the gain's minimum and maximum over the visits. The last columns:
  of FLOPs    the gain in requests/s divided by its limit, the ratio of FLOPs (decoding included)
  of text     requests/s divided by stock vLLM's on text prompts as long as the layer average plus the text
  cores busy  of the client, of the busiest API server and of the engine; one near 1 may be the bottleneck
The last table shows how many requests fit into the same KV memory (computed from blocks), how many were seen answering
at once, and the time of each stage and of the whole prefill as a share of an uncompressed prefill. The engine for these
times is compiled if the servers are."""


def _load_table(concurrency: int | str, modes: Mapping[str, Any]) -> str:
    headings = ["requests/s", "", *(heading for _, heading, *_ in TIMED[1:]), "of FLOPs", "of text", "cores busy"]
    some = next(iter(modes.values()))  # they share stock vLLM's values
    throughput, *latencies = (f"{_number(some[name]['stock'])}{unit}" for name, _, unit, _ in TIMED)
    rows = [
        _load_row(f"{concurrency} in flight", headings),
        _load_row("stock", [throughput, "", *latencies, "", "", _cores(some, "stock")]),
        *(_load_row(mode, [*_gains(entry), _cores(entry, "duet")]) for mode, entry in modes.items()),
    ]
    return "\n".join(rows)


def _gains(entry: Mapping[str, Any]) -> list[str]:
    throughput = entry["requests_per_second"]
    spread = f"{throughput['gain']:.2f}x ({throughput['gain_least']:.2f}-{throughput['gain_most']:.2f})"
    latencies = [f"{entry[name]['gain']:.2f}x" for name, *_ in TIMED[1:]]
    limits = [f"{throughput[limit]:.2f}" for limit in ("of_flop_limit", "of_text")]
    return [_number(throughput["duet"]), spread, *latencies, *limits]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _cores(entry: Mapping[str, Any], side: str) -> str:
    return " ".join(f"{entry[name][side]:.2f}" for name in BUSY)


def _load_row(heading: str, cells: Sequence[str]) -> str:
    return _row(heading, cells, (11, 19, 11, 11, 11, 11, 9, 8, 16))


def _mode_table(modes: Mapping[str, Any]) -> str:
    headings = ["layer avg", "FLOPs", "fit: stock", "duet", "gain", "of text", "seen: stock", "duet", "gain"]
    rows = [
        [*_costs(entry), *_capacity(entry.get("capacity")), *_stages(entry.get("stages"))] for entry in modes.values()
    ]
    lines = [_mode_row("", [*headings, "stage 1", "stage 2", "prefill"])]
    return "\n".join([*lines, *(_mode_row(mode, row) for mode, row in zip(modes, rows, strict=True))])


def _costs(entry: Mapping[str, Any]) -> list[str]:
    return [f"{entry['visual_tokens_layer_average']:.1f}", f"1/{entry['flop_limit_request']:.2f}"]


def _capacity(capacity: Mapping[str, Any] | None) -> list[str]:
    if capacity is None:
        return [""] * 7
    fits, seen = capacity["fits"], capacity.get("observed")
    cells = [str(fits["stock"]), str(fits["duet"]), f"{fits['duet'] / fits['stock']:.2f}x"]
    cells.append(f"{fits['duet'] / fits['text']:.2f}")
    return cells + (
        [str(seen["stock"]), str(seen["duet"]), f"{seen['duet'] / seen['stock']:.2f}x"] if seen else [""] * 3
    )


def _stages(stages: Mapping[str, float] | None) -> list[str]:
    return [f"{stages[name]:.2%}" for name in ("stage1", "stage2", "model")] if stages else [""] * 3


def _mode_row(heading: str, cells: Sequence[str]) -> str:
    return _row(heading, cells, (10, 8, 12, 7, 8, 9, 13, 7, 8, 9, 9, 9))


def _row(heading: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"  {heading:14}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
