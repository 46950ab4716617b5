from __future__ import annotations

from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import torch

from benchmarks.stages import STAGE_FUNCTIONS, Clocks


@pytest.fixture
def clocks(monkeypatch):
    """Clocks that read one more second every time."""
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


def test_what_runs_inside_its_own_name_counts_once(clocks):
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
