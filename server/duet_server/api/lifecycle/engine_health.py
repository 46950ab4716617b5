"""Whether the engine answers. Its loop takes a question between two steps, and asks the workers."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

from duet_server.api.lifecycle.gate import Gate

logger = init_logger(f"vllm.{__name__}")

ANSWER_S = 0.5  # an idle engine answers in milliseconds; orchestrators wait 1 s for an answer to their probe


class EnginePulse:
    """Asks the engine at intervals while it has requests. An idle engine is asked only for a probe, since each question
    wakes its workers. One question at a time is pending, and all probes share it.

    Args:
        engine: vLLM's engine client.
        gate: knows this process's requests.
        limit_s: how long the engine may be silent if it may be in a step.
    """

    def __init__(self, engine: Any, gate: Gate, limit_s: float) -> None:
        self._engine, self._gate, self._limit_s = engine, gate, limit_s
        self._is_only_client = engine.vllm_config.parallel_config._api_process_count == 1
        self._question: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._overdue = False  # the engine is idle, and a probe waited for its answer in vain
        self._answered_in: int | None = None  # the period of the last question that was answered
        self._doubt: str | None = "The engine has not answered yet."

    async def run(self) -> None:
        """Ask until the engine is dead, but not while it is idle."""
        while not self._engine.errored:
            if self._doubt or not self._is_idle:
                await asyncio.wait({self._ask()})
            await asyncio.sleep(self._limit_s / 4)

    async def check(self) -> str | None:
        """``problem`` for a probe: without requests, the engine is asked first."""
        if self._period is not None and not self._engine.errored:
            was_idle = self._is_idle
            answered, _ = await asyncio.wait({self._ask()}, timeout=ANSWER_S)
            # Other clients' requests are unknown here, so the engine may be in a step of theirs.
            self._overdue |= not answered and was_idle and self._is_idle and self._is_only_client
        return self.problem

    @property
    def problem(self) -> str | None:
        """Why the engine is not healthy, as far as it has been asked; None if it is."""
        if self._engine.errored:
            return "The engine has died."
        if self._question is not None and not self._question.done():
            silent_s = asyncio.get_running_loop().time() - self._asked_at
            if self._overdue or silent_s > self._limit_s:
                return f"The engine has not answered for {silent_s:.1f} s."
        return self._doubt

    @property
    def _period(self) -> int | None:
        """The current period without requests, named by the number of requests before it; None if there are some."""
        in_background = self._engine.output_processor.has_unfinished_requests()
        return None if self._gate.num_in_flight or in_background else self._gate.num_finished

    @property
    def _is_idle(self) -> bool:
        """Whether the engine has answered since the last request: before, it may still be in that request's step."""
        return self._period is not None and self._period == self._answered_in

    def _ask(self) -> asyncio.Task[None]:
        """The pending question, or a new one."""
        if self._question is None or self._question.done():
            self._asked_at, self._overdue = asyncio.get_running_loop().time(), False
            self._question = asyncio.create_task(self._await_answer(self._period))
        return self._question

    async def _await_answer(self, asked_in: int | None) -> None:
        try:
            await self._engine.collective_rpc("check_health")
        except EngineDeadError:
            return
        except Exception as error:
            logger.warning("The health check of the engine's workers failed: %s", error)
            self._doubt = "The health check of the engine's workers failed."
        else:
            self._answered_in, self._doubt = asked_in, None
