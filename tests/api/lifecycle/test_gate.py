from __future__ import annotations

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from duet_server.api.lifecycle.gate import Gate


class Rig:
    """A gate in front of three routes; ``/slow`` answers when ``release`` is set."""

    def __init__(self):
        self.engine = SimpleNamespace(errored=False)
        self.gate = Gate(self.engine)
        self.release = asyncio.Event()
        routes = [Route("/slow", self.slow), Route("/stream", self.stream), Route("/broken", self.broken)]
        app = Starlette(routes=[*routes, Route("/health/live", self.broken)])
        app.add_middleware(self.gate.middleware)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")

    async def slow(self, request):
        await self.release.wait()
        return JSONResponse({"answer": 42})

    async def stream(self, request):
        async def pieces():
            yield b"first "
            await self.release.wait()
            yield b"last"

        return StreamingResponse(pieces())

    async def broken(self, request):
        return JSONResponse({"error": {"message": "EngineCore encountered an issue."}}, 500)

    async def start(self, path):
        """Requests ``path`` and returns the task once the request is in flight."""
        before = self.gate.num_in_flight
        task = asyncio.create_task(self.client.get(path))
        while self.gate.num_in_flight == before:
            await asyncio.sleep(0)
        return task


@pytest.fixture
def rig():
    return Rig()


def assert_turned_away(response):
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["connection"] == "close"
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == 503


@pytest.mark.asyncio
async def test_requests_in_flight_finish_and_new_ones_are_refused(rig):
    inside = [await rig.start("/slow"), await rig.start("/stream")]
    rig.gate.draining = True
    assert_turned_away(await rig.client.get("/slow"))
    emptied = asyncio.create_task(rig.gate.emptied())
    await asyncio.sleep(0)
    assert not emptied.done()
    rig.release.set()
    answers = [await task for task in inside]
    assert [answer.text for answer in answers] == ['{"answer":42}', "first last"]
    await asyncio.wait_for(emptied, 1)
    assert rig.gate.num_in_flight == 0


@pytest.mark.asyncio
async def test_health_is_always_answered_and_never_waited_for(rig):
    rig.gate.draining = True
    assert (await rig.client.get("/health/live")).status_code == 500
    await asyncio.wait_for(rig.gate.emptied(), 1)


@pytest.mark.asyncio
async def test_after_the_engine_died_all_requests_are_refused(rig):
    assert (await rig.client.get("/broken")).status_code == 500
    rig.engine.errored = True
    assert_turned_away(await rig.client.get("/slow"))


@pytest.mark.asyncio
async def test_a_500_caused_by_the_engines_death_becomes_a_503(rig):
    async def dies(request):
        rig.engine.errored = True
        return await rig.broken(request)

    app = Starlette(routes=[Route("/", dies)])
    app.add_middleware(rig.gate.middleware)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        assert_turned_away(await client.get("/"))
    assert rig.gate.num_in_flight == 0
