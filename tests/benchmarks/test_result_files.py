from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.result_files import keep, table


def test_a_table_aligns_numbers_to_the_right():
    assert table(["kind", "200"], [["a", 7], ["longer", 12]]).splitlines() == [
        "kind    200",
        "a         7",
        "longer   12",
    ]


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    output = tmp_path / "results" / "result.json"
    keep({"cases": [1]}, output)
    write_text = Path.write_text

    def killed_on_the_way(self, text):
        write_text(self, text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed_on_the_way)
    with pytest.raises(KeyboardInterrupt):
        keep({"cases": [1, 2]}, output)
    monkeypatch.undo()
    assert json.loads(output.read_text()) == {"cases": [1]}
    keep({"cases": [1, 2, 3]}, output)
    assert json.loads(output.read_text()) == {"cases": [1, 2, 3]}
    assert list(output.parent.iterdir()) == [output]
