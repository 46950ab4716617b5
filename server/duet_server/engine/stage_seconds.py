"""Clocks for both stages. Each adds up the stage's time in a step and records it in the stage's histogram."""

from collections import deque
from types import TracebackType
from typing import Any

from prometheus_client import Histogram

from duet_server.engine.timer import Timer
from duet_server.engine.vllm_internals import VllmConfig, current_platform, get_tensor_model_parallel_rank


def stage_clock(histogram: Histogram, vllm_config: VllmConfig) -> "StageClock":
    """A clock for the served model. All tensor-parallel ranks do the same, so only the first one records."""
    counts = get_tensor_model_parallel_rank() == 0
    series = histogram.labels(vllm_config.model_config.served_model_name) if counts else None
    return StageClock(series, on_gpu=current_platform.device_type == "cuda")


class StageClock(Timer):
    """Adds up the time inside ``with clock:`` until ``observe()``. On a GPU this is stream time: no host wait."""

    def __init__(self, series: Any, on_gpu: bool) -> None:
        super().__init__(on_gpu)
        self._series = series
        self._spans: list[tuple[Any, Any]] = []
        self._pending: deque[list[tuple[Any, Any]]] = deque()  # samples that the stream may not have finished

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._spans.append((self._start, self._now()))

    def observe(self) -> None:
        """Record the sum since the last call as one sample; on a GPU, all samples that the stream has finished."""
        if self._spans:
            self._pending.append(self._spans)
            self._spans = []
        while self._pending and (not self._on_gpu or self._pending[0][-1][1].query()):
            seconds = sum(self._seconds(*span) for span in self._pending.popleft())
            if self._series is not None:
                self._series.observe(seconds)
