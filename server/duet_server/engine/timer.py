"""Time that passes on the host, or in a GPU's stream without the host waiting for it."""

import time
from typing import Any

import torch


class Timer:
    """Points in time and what lies between them: the host's, or on a GPU the current stream's."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu

    def _now(self) -> Any:
        """Seconds, or an event that the stream passes later."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._on_gpu else end - start
