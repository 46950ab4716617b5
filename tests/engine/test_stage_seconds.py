from __future__ import annotations

import time

from duet_server.engine.stage_seconds import StageClock


class Series:
    def __init__(self) -> None:
        self.samples: list[float] = []

    def observe(self, seconds: float) -> None:
        self.samples.append(seconds)


class Event:
    """Of a stream that is at ``Event.passed``."""

    passed = 0.0

    def __init__(self, at: float) -> None:
        self.at = at

    def query(self) -> bool:
        return self.at <= Event.passed

    def elapsed_time(self, end: Event) -> float:
        assert end.query(), "the host would wait"
        return (end.at - self.at) * 1000


def test_spans_add_up_to_one_sample():
    series = Series()
    clock = StageClock(series, on_gpu=False)
    clock.observe()
    for _ in range(2):
        with clock:
            time.sleep(0.01)
    before = time.perf_counter()
    time.sleep(0.05)  # between spans nothing counts
    with clock:
        pass
    clock.observe()
    clock.observe()
    (seconds,) = series.samples
    assert 0.02 <= seconds < time.perf_counter() - before + 0.02


def test_a_gpus_samples_come_when_they_are_over(monkeypatch):
    series = Series()
    clock = StageClock(series, on_gpu=True)
    times = iter([0.0, 1.0, 2.0, 4.0, 5.0, 9.0])
    monkeypatch.setattr(clock, "_now", lambda: Event(next(times)))
    monkeypatch.setattr(Event, "passed", 3.0)
    with clock:
        pass
    with clock:
        pass
    clock.observe()
    assert series.samples == []
    monkeypatch.setattr(Event, "passed", 8.0)
    with clock:
        pass
    clock.observe()
    assert series.samples == [3.0]
    monkeypatch.setattr(Event, "passed", 9.0)
    clock.observe()
    assert series.samples == [3.0, 4.0]


def test_other_ranks_do_not_count():
    clock = StageClock(None, on_gpu=False)
    with clock:
        pass
    clock.observe()
