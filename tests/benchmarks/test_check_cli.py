from __future__ import annotations

import json

import pytest

from benchmarks import check_cli


@pytest.mark.parametrize(("failures", "status"), [([], 0), (["wrong"], 1)])
def test_a_check_ends_with_its_figures_in_a_file_and_a_status(tmp_path, capsys, failures, status):
    args = check_cli.parser("python -m check", "check", "").parse_args(
        ["--seed", "5", "--output", str(tmp_path / "new" / "out.json")]
    )
    with pytest.raises(SystemExit) as end:
        check_cli.run("check", args, lambda args, log: ({"answers": 3}, failures))
    assert end.value.code == status
    result = json.loads(args.output.read_text())
    assert (result["figures"], result["failures"], result["options"]) == ({"answers": 3}, failures, {"seed": 5})
    assert "seed 5" in (printed := capsys.readouterr().out)
    assert ("FAILED: wrong" in printed) == bool(failures)


def test_errors_of_two_requests_are_the_same_error():
    first, second = (f'{{"message": "see {number:032x}", "code": 500}}' for number in (1 << 100, 1 << 120))
    assert check_cli.without_ids(first) == check_cli.without_ids(second) == '{"message": "see <id>", "code": 500}'
