"""The life of the server process: signals drain it, and it does not outlive its engine."""

from __future__ import annotations

import asyncio
import signal
from argparse import Namespace
from contextlib import suppress
from typing import Any

from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm import envs
from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

from duet_server.api.lifecycle.engine_health import EnginePulse
from duet_server.api.lifecycle.gate import Gate

logger = init_logger(f"vllm.{__name__}")

WATCH_S = 0.25
LINGER_S = 1.0  # before the socket closes: what is on its way gets an answer
CUT_S = 2.0  # for what is cut to be told so


class ServerLife:
    """What runs beside the requests, from the app's start to its end.

    Args:
        state: the app's; vLLM puts uvicorn's server there before it starts it.
        args: where ``cli.py`` finds, as ``duet_failure``, why the server ended if not by a signal.
        stall_timeout_s: silence after which the engine counts as stalled.
    """

    def __init__(self, engine: Any, state: State, args: Namespace, stall_timeout_s: float) -> None:
        self.gate = Gate(engine)
        self.pulse = EnginePulse(engine, stall_timeout_s)
        self._engine, self._state, self._args = engine, state, args
        self._drain: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None

    @property
    def problem(self) -> str | None:
        """Why the server is not ready."""
        return self.gate.closed or self.pulse.problem

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Runs with the app's lifespan, which uvicorn starts once vLLM's signal handlers stand; ours replace them."""

        async def living(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            self._catch_signals()
            tasks = [asyncio.create_task(task) for task in (self.pulse.run(), self._watch())]
            try:
                await app(scope, receive, send)
            finally:
                for task in tasks:
                    task.cancel()

        return living

    def _catch_signals(self) -> None:
        if hasattr(self._state, "server"):  # no other than vLLM's is ours to end
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._drain is None:
            self.gate.draining = True
            self._drain = asyncio.create_task(self._drain_and_stop())
        elif self._patience is not None:
            with suppress(RuntimeError):  # nothing is waited for any more
                self._patience.reschedule(asyncio.get_running_loop().time())

    async def _drain_and_stop(self) -> None:
        """Wait for the requests in flight, at most ``--shutdown-timeout``; those that are left are cut."""
        limit_s = self._engine.vllm_config.shutdown_timeout
        logger.info(
            "Shutting down: %d requests in flight have %d s to finish, new ones get 503. Signal again to stop at once.",
            self.gate.num_in_flight,
            limit_s,
        )
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s) as self._patience:
                    await self.gate.emptied()
            if self.gate.num_in_flight:
                await self._cut()
        finally:
            await self._stop()

    async def _cut(self) -> None:
        """End the requests in flight with what they have, finish reason "abort"."""
        logger.warning("%d requests in flight are cut.", self.gate.num_in_flight)
        try:
            async with asyncio.timeout(CUT_S):
                await self._engine.pause_generation(mode="abort", clear_cache=False)
                await self.gate.emptied()
        except TimeoutError:
            self._engine.vllm_config.shutdown_timeout = 0  # it does not answer: vLLM is not to wait for it either
        except EngineDeadError:
            return
        except Exception as error:  # it has got the signal, too, and takes no more orders
            logger.warning("The engine does not cut them: %s", error)

    async def _watch(self) -> None:
        """Log when the engine stalls and when it recovers; end with it."""
        known = None
        while not self._engine.errored:
            await asyncio.sleep(WATCH_S)
            problem = self.pulse.problem
            if (problem is None) != (known is None):
                logger.warning("Not ready: %s", problem) if problem else logger.info("Ready: the engine steps.")
                known = problem
        if envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            return
        if self.gate.draining:  # the drain ends the server; the engine may have had the signal, too
            if self.gate.num_in_flight:
                logger.error("The engine has ended before the requests in flight.")
            return
        self._args.duet_failure = "the engine died"
        logger.error("The engine has died: requests get 503 and the server ends.")
        await self._stop()

    async def _stop(self) -> None:
        """End uvicorn's server, and with it vLLM's, as vLLM does where its engine fails."""
        await asyncio.sleep(LINGER_S)
        self._state.server.config.timeout_graceful_shutdown = CUT_S  # for clients that do not read their answers
        self._state.server.should_exit = True
