from __future__ import annotations

import time

from duet_server.engine.stage_seconds import StageClock


class Series:
    def __init__(self) -> None:
        self.samples: list[float] = []

    def observe(self, seconds: float) -> None:
        self.samples.append(seconds)


class Event:
    """An event of a stream that has reached the time ``Event.passed``."""

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
    time.sleep(0.05)  # time between spans does not count
    with clock:
        pass
    clock.observe()
    clock.observe()
    (seconds,) = series.samples
    assert 0.02 <= seconds < time.perf_counter() - before + 0.02


def test_gpu_samples_are_recorded_once_their_events_have_passed(monkeypatch):
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


def test_a_clock_without_a_series_records_nothing():
    clock = StageClock(None, on_gpu=False)
    with clock:
        pass
    clock.observe()
