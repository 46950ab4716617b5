"""Closes a connection so that its client can still read the last answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

QUIET_S = 2.0  # without data from the client, after which it is not waited for
LONGEST_S = 30.0


class LingeringTransport:
    """A connection that closes in stages, as RFC 9112, 9.6 has servers do.

    If a socket closes while its client is still sending, the client is told of a reset, and loses the answer that says
    why: 413 to a body that is too large, for one. So the server ends its own side, and ignores what still comes until
    the client ends too, or is quiet.

    Args:
        transport: the connection.
        has_all: whether the client has sent all of its request. Asked only under TLS, where one side cannot end alone.
    """

    def __init__(self, transport: asyncio.Transport, has_all: Callable[[], bool]) -> None:
        self.transport, self._has_all = transport, has_all
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def is_closing(self) -> bool:
        return self._deadline is not None or self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write, unless the server's side has ended: a route may not know yet."""
        if not self.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """End the server's side now, and the connection when the client ends its own."""
        if self.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        elif self._has_all():
            self.transport.close()
            return
        self._deadline = self._loop.time() + LONGEST_S
        self.transport.resume_reading()
        self.wait()

    def wait(self) -> None:
        """Wait for the client from now on. Called whenever it has sent something that is ignored."""
        self.stop_waiting()
        if self._deadline is not None:
            at = min(self._loop.time() + QUIET_S, self._deadline)
            self._timer = self._loop.call_at(at, self.transport.close)

    def stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
