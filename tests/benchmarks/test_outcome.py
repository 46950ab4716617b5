from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import outcome


@pytest.mark.parametrize(("failures", "status"), [([], 0), (["wrong"], 1)])
def test_a_check_ends_with_its_figures_in_a_file_and_a_status(tmp_path, capsys, failures, status):
    args = outcome.parser("check", "").parse_args(["--seed", "5", "--output", str(tmp_path / "new" / "out.json")])
    with pytest.raises(SystemExit) as end:
        outcome.run("check", args, lambda args, log: ({"answers": 3}, failures))
    assert end.value.code == status
    result = json.loads(args.output.read_text())
    assert (result["figures"], result["failures"], result["options"]) == ({"answers": 3}, failures, {"seed": 5})
    assert "seed 5" in (printed := capsys.readouterr().out)
    assert ("FAILED: wrong" in printed) == bool(failures)


def test_a_table_aligns_numbers_to_the_right():
    assert outcome.table(["kind", "200"], [["a", 7], ["longer", 12]]).splitlines() == [
        "kind    200",
        "a         7",
        "longer   12",
    ]


def test_errors_of_two_requests_are_the_same_error():
    first, second = (f'{{"message": "see {number:032x}", "code": 500}}' for number in (1 << 100, 1 << 120))
    assert outcome.without_ids(first) == outcome.without_ids(second) == '{"message": "see <id>", "code": 500}'


def test_a_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    output = tmp_path / "results" / "result.json"
    outcome.keep({"cases": [1]}, output)
    write_text = Path.write_text

    def killed_on_the_way(self, text):
        write_text(self, text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed_on_the_way)
    with pytest.raises(KeyboardInterrupt):
        outcome.keep({"cases": [1, 2]}, output)
    monkeypatch.undo()
    assert json.loads(output.read_text()) == {"cases": [1]}
    outcome.keep({"cases": [1, 2, 3]}, output)
    assert json.loads(output.read_text()) == {"cases": [1, 2, 3]}
    assert list(output.parent.iterdir()) == [output]
