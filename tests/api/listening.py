"""The stand-in server behind a port: served by vLLM's own uvicorn, in the event loop of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from vllm.entrypoints.launchers.launcher import serve_http

from tests.api.stand_in import StandInServer


@asynccontextmanager
async def listening(server: StandInServer, **uvicorn_options: Any) -> AsyncIterator[str]:
    """Yields the server's URL."""
    state = server.app.state
    state.server = None
    listener = socket.create_server(("127.0.0.1", 0))
    limits = {name: getattr(server.args, name) for name in ("h11_max_incomplete_event_size", "h11_max_header_count")}
    options = {"log_level": "warning", "port": listener.getsockname()[1], **limits, **uvicorn_options}
    serving = asyncio.create_task(serve_http(server.app, listener, **options))
    while not getattr(state.server, "started", False):
        assert not serving.done(), serving
        await asyncio.sleep(0.01)
    uvicorn_server = state.server
    try:
        yield f"http://127.0.0.1:{options['port']}"
    finally:
        uvicorn_server.should_exit = True
        await (await serving)  # serve_http returns a coroutine
