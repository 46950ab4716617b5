"""Measures time on the host, or in a GPU's stream without making the host wait."""

import time
from typing import Any

import torch


class Timer:
    """Takes points in time and computes the seconds between them: on the host, or in the GPU's current stream."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu

    def _now(self) -> Any:
        """The host's time in seconds, or an event that the stream reaches later."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start
