from __future__ import annotations

import json
import sys

import pytest

from benchmarks.accuracy import plot, report, tables
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.methods import METHODS


def accuracy(share):
    return {"by_type": {"color": share, "place": share}, "mean": share, "standard_error": 0.0123}


def point(method, layer_average, share, selection="duet", mean=0.8, lead=None):
    costs = {"layer_average": layer_average, "answer_tokens": 3.44}
    speed = {"requests_per_second": 20.0, "gain": 1 / share**0.5, "gain_range": (0.9, 4)}
    about = {"method": method, "share": share, "selection": selection, "compression": "off"}
    return {**about, **costs, **speed, "accuracy": accuracy(mean), "kept": mean / 0.8, "kept_error": 0.02, "lead": lead}


OFF = point("off", 144.0, 1.0)
DUET = [point("DUET, salient", 10.0, 0.07, mean=0.6), point("DUET, salient", 47.5, 0.33, mean=0.72)]
LEAD = {"mean": -0.2, "standard_error": 0.034}
ELSEWHERE = [
    point("off", 144.0, 1.0, "duet_random_keep"),
    point("random keep", 10.0, 0.07, "duet_random_keep", 0.4, LEAD),
]
FIGURES = {
    "family": "synthetic",
    "questions": 14,
    "one_answer": accuracy(0.25),
    "checkpoints": {
        "compressed": {"num_patches": 144, "points": [OFF, *DUET, *ELSEWHERE], "left_out": ["FastV at 7%: no."]}
    },
}
HARDWARE = {"gpu": None, "cpu": "a CPU", "cores": 2}
ENVIRONMENT = {**HARDWARE, "versions": {"vllm": "0.32"}, "commit": "abc", "uncommitted_changes": False}


def cells(table, name):
    """The cells of the rows that start with a name."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return [row[1:] for row in rows if row[0] == name]


def test_a_row_for_every_point_and_one_for_the_baseline():
    table = tables.render(FIGURES)
    costs = ["7%", "10.0", "3.4", "20.0", "3.78x (0.90 to 4.00)"]
    assert cells(table, "DUET, salient")[0] == [*costs, "60.0 ± 1.2", "75.0 ± 2.0", "", "60.0", "60.0"]
    assert cells(table, "random keep")[0][5:8] == ["40.0 ± 1.2", "50.0 ± 2.0", "-20.0 ± 3.4"]
    assert cells(table, "one answer") == [["", "", "", "", "", "25.0 ± 1.2", "", "", "25.0", "25.0"]]
    assert len(cells(table, "off")) == len(cells(table, "off, on the server of duet_random_keep")) == 1
    assert "## compressed" in table
    assert "- FastV at 7%: no." in table


def test_what_a_server_does_not_report_is_left_empty():
    unknown = {**OFF, "layer_average": None, "answer_tokens": None, "kept": None, "kept_error": None}
    visit = {"num_patches": None, "points": [unknown], "left_out": []}
    assert cells(tables.render({**FIGURES, "checkpoints": {"a": visit}}), "off")[0][:3] == ["100%", "", ""]


def test_a_curve_ends_uncompressed_on_its_own_server():
    visit = FIGURES["checkpoints"]["compressed"]
    assert plot.curve(visit["points"], "DUET, salient") == [*DUET, OFF]
    assert plot.curve(visit["points"], "random keep") == ELSEWHERE[::-1]
    assert plot.curve(visit["points"], "FastV") == []


def test_every_method_has_a_look_of_its_own():
    assert set(plot.STYLES) == {method.name for method in METHODS}
    assert len({style["marker"] for style in plot.STYLES.values()}) == len(METHODS)


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"environment": ENVIRONMENT, "figures": FIGURES, "failures": ["a: too slow"]}))
    return path


def test_table_and_plot_are_written_beside_a_result(result, capsys):
    pytest.importorskip("matplotlib")
    main(["report", str(result)])
    written = result.with_suffix(".md").read_text()
    assert written.startswith("a CPU, 2 cores; vllm 0.32; commit abc.\n\n**Failed**: a: too slow\n")
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "Plot in" in capsys.readouterr().out


@pytest.mark.parametrize("checkpoints", [{}, {"a": {"num_patches": None, "points": [OFF], "left_out": []}}])
def test_without_curves_a_result_still_has_its_table(result, checkpoints):
    content = json.loads(result.read_text())
    content["figures"]["checkpoints"] = checkpoints
    result.write_text(json.dumps(content))
    report.write(result)
    assert result.with_suffix(".md").exists()
    assert not result.with_suffix(".png").exists()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match=r"pip install duet-server\[bench\]"):
        plot.figure_class()


def test_an_unknown_family_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["guesses"])
    assert "synthetic" in capsys.readouterr().err
