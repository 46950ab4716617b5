from __future__ import annotations

import json
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch

from benchmarks import stages
from benchmarks.stages import STAGE_FUNCTIONS, Clocks


@pytest.fixture
def clocks(monkeypatch):
    """Clocks whose time grows by one second at every reading."""
    ticks = iter(range(100))
    monkeypatch.setattr(Clocks, "_now", lambda self: float(next(ticks)))
    return Clocks(on_gpu=False)


def test_clocks_add_up_and_start_again(clocks):
    owner = SimpleNamespace(double=lambda number: 2 * number)
    clocks.wrap("stage1", owner, "double")
    assert [owner.double(2), owner.double(number=3)] == [4, 6]
    assert clocks.take() == {"stage1": 2.0}
    assert clocks.take() == {}


def test_on_a_gpu_events_are_read_when_the_stream_has_passed_them(monkeypatch):
    passed, recorded = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            recorded.append(self)

        def elapsed_time(self, end):
            assert passed == recorded  # milliseconds
            return 500.0 * (recorded.index(end) - recorded.index(self))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: passed.extend(recorded))
    clocks, owner = Clocks(on_gpu=True), SimpleNamespace(double=lambda number: 2 * number)
    clocks.wrap("stage1", owner, "double")
    assert owner.double(2) == 4
    assert clocks.take() == {"stage1": 0.5}


def test_nested_functions_of_one_name_count_once(clocks):
    owner = SimpleNamespace(inner=lambda: None, outer=lambda: owner.inner(), other=lambda: owner.outer())
    clocks.wrap("stage2", owner, "inner")
    clocks.wrap("stage2", owner, "outer")
    clocks.wrap("model", owner, "other")
    owner.other()
    assert clocks.take() == {"stage2": 1.0, "model": 3.0}


def test_a_function_that_raises_is_timed_too(clocks):
    owner = SimpleNamespace(divide=lambda number: 1 / number)
    clocks.wrap("stage1", owner, "divide")
    for number in (0, 1):
        try:
            owner.divide(number)
        except ZeroDivisionError:
            assert number == 0
    assert clocks.take() == {"stage1": 2.0}


@pytest.mark.parametrize(("stage", "owner", "function"), STAGE_FUNCTIONS, ids=lambda name: name.split(".")[-1])
def test_the_engine_has_the_functions_that_are_timed(stage, owner, function):
    assert callable(getattr(resolve_name(owner), function)), stage


@pytest.mark.parametrize(("words", "compiled"), [([], False), (["--compile"], True)])
def test_the_output_says_whether_the_engine_was_compiled(tmp_path, monkeypatch, capsys, words, compiled):
    def start_engine(model, checkpoint, *, compiled):
        assert (model, checkpoint) == (stages.MODELS["small"], tmp_path / "model")
        return f"engine, {compiled=}"

    def measure_stages(llm, model, modes, **_):
        return dict.fromkeys(modes, llm)

    monkeypatch.setattr(stages, "start_engine", start_engine)
    monkeypatch.setattr(stages, "measure_stages", measure_stages)
    monkeypatch.setattr("sys.argv", ["stages", "--modes", "light", "--model-dir", str(tmp_path / "model"), *words])
    stages.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {"compiled": compiled, "shares": {"light": f"engine, {compiled=}"}}
