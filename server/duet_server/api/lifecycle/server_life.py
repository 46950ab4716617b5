"""Start and end of the server process: signals drain it, and it stops if its engine dies."""

from __future__ import annotations

import asyncio
import signal
from argparse import Namespace
from contextlib import suppress
from typing import Any

from starlette.datastructures import State
from starlette.routing import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm import envs
from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

from duet_server.api.lifecycle.engine_health import EnginePulse
from duet_server.api.lifecycle.gate import READINESS, Gate
from duet_server.api.lifecycle.health import not_ready

logger = init_logger(f"vllm.{__name__}")

WATCH_S = 0.25
LINGER_S = 1.0  # time before the socket closes, for requests that are already on their way
CUT_S = 2.0  # time for aborted requests to receive their last chunk


class ServerLife:
    """Runs in parallel to the requests, from the app's start to its end.

    Args:
        engine: vLLM's engine client.
        state: the app's state. vLLM stores uvicorn's server there before it starts it.
        args: receives ``duet_failure``, the reason why the server ended if not by a signal, for ``cli.py``.
        stall_timeout_s: how long a step of the engine may take before it counts as stalled.
    """

    def __init__(self, engine: Any, state: State, args: Namespace, stall_timeout_s: float) -> None:
        self.gate = Gate(engine)
        self.pulse = EnginePulse(engine, self.gate, stall_timeout_s)
        self._engine, self._state, self._args = engine, state, args
        self._drain: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None

    async def check(self) -> str | None:
        """Why the server is not ready; None if it is."""
        return self.gate.closed or await self.pulse.check()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Starts with the app's lifespan: then vLLM's signal handlers are installed, and ours can replace them."""

        async def living(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                is_probe = scope["type"] == "http" and get_route_path(scope) in READINESS
                problem = await self.check() if is_probe else None
                await (not_ready(problem) if problem else app)(scope, receive, send)
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
        if hasattr(self._state, "server"):  # only replace the signal handlers of vLLM's own server
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._drain is None:
            self.gate.draining = True
            self._drain = asyncio.create_task(self._drain_and_stop())
        elif self._patience is not None:
            with suppress(RuntimeError):  # the wait is already over
                self._patience.reschedule(asyncio.get_running_loop().time())

    async def _drain_and_stop(self) -> None:
        """Wait for the requests in flight, at most ``--shutdown-timeout`` seconds, then abort the rest."""
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
        """Abort the requests in flight. Clients get the tokens so far and the finish reason "abort"."""
        logger.warning("Aborting %d requests in flight.", self.gate.num_in_flight)
        try:
            async with asyncio.timeout(CUT_S):
                await self._engine.pause_generation(mode="abort", clear_cache=False)
                await self.gate.emptied()
        except TimeoutError:
            self._engine.vllm_config.shutdown_timeout = 0  # the engine does not answer: vLLM must not wait either
        except EngineDeadError:
            return
        except Exception as error:  # the engine received the signal as well and refuses commands
            logger.warning("The engine did not abort the requests: %s", error)

    async def _watch(self) -> None:
        """Log when the engine stalls or recovers, and stop the server when the engine dies."""
        known = None
        while not self._engine.errored:
            await asyncio.sleep(WATCH_S)
            problem = self.pulse.problem
            if (problem is None) != (known is None):
                logger.warning("Not ready: %s", problem) if problem else logger.info("Ready: the engine steps.")
                known = problem
        if envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
            return
        if self.gate.draining:  # the drain stops the server; the engine may have received the signal as well
            if self.gate.num_in_flight:
                logger.error("The engine ended before the requests in flight were finished.")
            return
        self._args.duet_failure = "the engine died"
        logger.error("The engine has died: requests get 503 and the server stops.")
        await self._stop()

    async def _stop(self) -> None:
        """Stop uvicorn's server, and with it vLLM's, as vLLM does if its engine fails."""
        await asyncio.sleep(LINGER_S)
        if server := getattr(self._state, "server", None):
            server.config.timeout_graceful_shutdown = CUT_S  # some clients do not read their responses
            server.should_exit = True
