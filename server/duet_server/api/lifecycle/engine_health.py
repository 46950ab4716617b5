"""Checks that the engine still steps: its loop answers between two steps, after it has asked its workers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

logger = init_logger(f"vllm.{__name__}")

INTERVAL_S = 2.0


class EnginePulse:
    """Asks the engine at regular intervals. While it is silent, the last question stays pending and none is added."""

    def __init__(self, engine: Any, limit_s: float) -> None:
        self._engine, self._limit_s = engine, limit_s
        self._answered_at: float | None = None

    async def run(self) -> None:
        """Ask until the engine is dead."""
        interval_s = min(INTERVAL_S, self._limit_s / 4)
        while not self._engine.errored:
            try:
                await self._engine.collective_rpc("check_health")
                self._answered_at = time.monotonic()
            except EngineDeadError:
                return
            except Exception as error:
                logger.warning("The health check of the engine's workers failed: %s", error)
            await asyncio.sleep(interval_s)

    @property
    def problem(self) -> str | None:
        """Why the engine is not healthy now; None if it is."""
        if self._engine.errored:
            return "The engine has died."
        if self._answered_at is None:
            return "The engine has not answered yet."
        silent_s = time.monotonic() - self._answered_at
        return f"The engine has not stepped for {silent_s:.0f} s." if silent_s > self._limit_s else None
