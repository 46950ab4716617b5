"""Plots the curves: accuracy kept over visual tokens and over the gain in requests/s, one row per checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.methods import METHODS, OFF

# Colours by Okabe and Ito, distinct for any colour vision. Variants of a method share a colour; all markers differ.
_BLUE, _SKY, _GREEN, _ORANGE, _VERMILION, _PURPLE, _GREY = (
    "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#7F7F7F",
)  # fmt: skip
STYLES = {
    "DUET, salient": {"color": _BLUE, "marker": "o", "linewidth": 2.4},
    "DUET, all": {"color": _BLUE, "marker": "s", "linestyle": "--"},
    "DUET, last": {"color": _BLUE, "marker": "^", "linestyle": ":"},
    "DUET's stage 1": {"color": _SKY, "marker": "D"},
    "VisionZip": {"color": _GREEN, "marker": "v"},
    "PyramidDrop": {"color": _ORANGE, "marker": "P"},
    "FastV": {"color": _VERMILION, "marker": "X"},
    "random keep": {"color": _GREY, "marker": "x", "linestyle": "--"},
    "uniform pooling": {"color": _PURPLE, "marker": "+", "linestyle": "--"},
}
PANEL_INCHES = (5.2, 4.8)
LEGEND_INCHES = 1.9
DOTS_PER_INCH = 150

Point = Mapping[str, Any]


def figure_class() -> Any:
    """matplotlib's ``Figure``; nothing else needs matplotlib.

    Raises:
        SystemExit: if it is not installed, with the command to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("The plot needs matplotlib: pip install duet-server[bench]") from error
    return Figure


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Draw every checkpoint whose server reports visual tokens into a PNG. There must be at least one."""
    visits = {name: visit for name, visit in figures["checkpoints"].items() if visit["num_patches"]}
    width, height = PANEL_INCHES
    size = (2 * width + LEGEND_INCHES, height * len(visits))
    figure = figure_class()(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(visits), 2, squeeze=False, sharey=True)
    for (over_tokens, over_gain), (name, visit) in zip(panels, visits.items(), strict=True):
        _draw_over_tokens(over_tokens, name, visit, figures["one_answer"]["mean"])
        _draw_over_gain(over_gain, name, visit, figures["one_answer"]["mean"])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, handlelength=3.2)
    figure.savefig(path)


def curve(points: Sequence[Point], method: str) -> list[Point]:
    """A method's points by rising cost. The last one is uncompressed, on the same server."""
    compressed = [point for point in points if point["method"] == method]
    servers = {point["selection"] for point in compressed}
    off = [point for point in points if point["method"] == OFF and point["selection"] in servers]
    return sorted(compressed + off, key=lambda point: point["layer_average"])


def _draw_over_tokens(panel: Any, name: str, visit: Mapping[str, Any], one_answer: float) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    _draw_curves(panel, visit["points"], "layer_average")
    budgets = sorted({point["share"] * visit["num_patches"] for point in visit["points"]})
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(budgets))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels([f"{budget:.0f}\n{budget / visit['num_patches']:.0%}" for budget in budgets])
    panel.set_xlabel("visual tokens, averaged over layers")
    panel.set_ylabel("accuracy kept ± standard error, %")
    _label(panel, name, visit, one_answer)


def _draw_over_gain(panel: Any, name: str, visit: Mapping[str, Any], one_answer: float) -> None:
    _draw_curves(panel, visit["points"], "gain")
    panel.set_xlabel("requests/s relative to off, median")
    panel.xaxis.set_major_formatter("{x:g}x")
    _label(panel, name, visit, one_answer)


def _draw_curves(panel: Any, points: Sequence[Point], over: str) -> None:
    for method in (method.name for method in METHODS):
        chosen = curve(points, method)
        if not chosen:
            continue
        x = [point[over] for point in chosen]
        y, error = ([100 * (point[key] or 0) for point in chosen] for key in ("kept", "kept_error"))
        look = {"markersize": 6, "alpha": 0.9, "linewidth": 1.5, "elinewidth": 0.8, **STYLES[method]}
        panel.errorbar(x, y, error, label=method, **look)


def _label(panel: Any, name: str, visit: Mapping[str, Any], one_answer: float) -> None:
    """Set the title, and draw the accuracy of giving the same answer to every question of a type."""
    off = next(point for point in visit["points"] if point["method"] == OFF)["accuracy"]["mean"]
    if off:
        panel.axhline(100 * one_answer / off, color="black", linewidth=1, linestyle=(0, (1, 2)), label="one answer")
    panel.set_title(f"{name} (100 is an accuracy of {100 * off:.1f} %)", loc="left", fontsize=11)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
