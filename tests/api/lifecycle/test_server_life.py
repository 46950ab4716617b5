from __future__ import annotations

import asyncio
from argparse import Namespace
from types import SimpleNamespace

import pytest

from duet_server.api.lifecycle import server_life as life_module
from duet_server.api.lifecycle.server_life import ServerLife


class Engine(SimpleNamespace):
    """``pause_generation`` ends all requests in flight, unless ``hangs``."""

    def __init__(self, shutdown_timeout):
        super().__init__(errored=False, hangs=False, paused=[], cut=asyncio.Event())
        parallel_config = SimpleNamespace(_api_process_count=1)
        self.vllm_config = SimpleNamespace(shutdown_timeout=shutdown_timeout, parallel_config=parallel_config)

    async def pause_generation(self, **options):
        self.paused.append(options)
        await asyncio.sleep(60 if self.hangs else 0)
        self.cut.set()


class Rig:
    def __init__(self, shutdown_timeout):
        self.engine = Engine(shutdown_timeout)
        self.server = SimpleNamespace(config=SimpleNamespace(timeout_graceful_shutdown=None), should_exit=False)
        self.args, self.state = Namespace(), SimpleNamespace(server=self.server)
        self.life = ServerLife(self.engine, self.state, self.args, stall_timeout_s=5)
        self.inside = self.life.gate.middleware(self.request)

    async def request(self, scope, receive, send):
        await self.engine.cut.wait()

    async def in_flight(self):
        task = asyncio.create_task(self.inside({"type": "http", "path": "/v1/x"}, None, None))
        await asyncio.sleep(0)
        return task

    async def stopped(self):
        async with asyncio.timeout(10):
            while not self.server.should_exit:
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(life_module, "CUT_S", 0.1)
    monkeypatch.setattr(life_module, "LINGER_S", 0.01)
    monkeypatch.setattr(life_module, "WATCH_S", 0.01)


@pytest.mark.asyncio
async def test_after_a_signal_requests_in_flight_finish():
    rig = Rig(shutdown_timeout=60)
    request = await rig.in_flight()
    rig.life._on_signal()
    await asyncio.sleep(0.05)
    assert not rig.server.should_exit
    assert "shutting down" in await rig.life.check()
    rig.engine.cut.set()
    await rig.stopped()
    assert request.done()
    assert rig.engine.paused == []
    assert rig.server.config.timeout_graceful_shutdown is not None


@pytest.mark.asyncio
async def test_after_the_timeout_requests_in_flight_are_aborted():
    rig = Rig(shutdown_timeout=0.05)
    request = await rig.in_flight()
    rig.life._on_signal()
    await rig.stopped()
    assert request.done()
    assert rig.engine.paused == [{"mode": "abort", "clear_cache": False}]
    assert rig.engine.vllm_config.shutdown_timeout == 0.05


@pytest.mark.asyncio
async def test_a_second_signal_aborts_at_once_and_a_third_does_nothing():
    rig = Rig(shutdown_timeout=60)
    request = await rig.in_flight()
    rig.life._on_signal()
    await asyncio.sleep(0)
    rig.life._on_signal()
    await rig.stopped()
    rig.life._on_signal()
    assert request.done()


@pytest.mark.asyncio
async def test_shutdown_does_not_wait_for_a_hanging_engine():
    rig = Rig(shutdown_timeout=0.05)
    rig.engine.hangs = True
    request = await rig.in_flight()
    rig.life._on_signal()
    await rig.stopped()
    assert rig.engine.vllm_config.shutdown_timeout == 0
    request.cancel()


@pytest.mark.asyncio
async def test_shutdown_continues_if_the_engine_refuses_commands():
    """A signal to the whole process group also reaches the engine, which then refuses commands."""
    rig = Rig(shutdown_timeout=0.05)

    async def refuse(**options):
        raise RuntimeError("Server shutting down")

    rig.engine.pause_generation = refuse
    request = await rig.in_flight()
    rig.life._on_signal()
    await rig.stopped()
    request.cancel()


@pytest.mark.asyncio
async def test_an_engine_that_ends_during_a_drain_does_not_end_the_drain():
    rig = Rig(shutdown_timeout=60)
    request = await rig.in_flight()
    rig.life._on_signal()
    rig.engine.errored = True
    await rig.life._watch()
    assert not rig.server.should_exit
    rig.engine.cut.set()
    await rig.stopped()
    assert request.done()
    assert not hasattr(rig.args, "duet_failure")


@pytest.mark.asyncio
async def test_the_server_ends_with_its_engine_and_says_that_it_failed():
    rig = Rig(shutdown_timeout=60)
    watch = asyncio.create_task(rig.life._watch())
    await asyncio.sleep(0.05)
    assert not rig.server.should_exit
    rig.engine.errored = True
    await rig.stopped()
    await watch
    assert rig.args.duet_failure == "the engine died"


@pytest.mark.asyncio
async def test_an_app_that_another_server_runs_is_not_stopped():
    rig = Rig(shutdown_timeout=60)
    del rig.state.server
    rig.engine.errored = True
    await rig.life._watch()
    assert not rig.server.should_exit


@pytest.mark.asyncio
async def test_an_engine_that_ends_after_a_drain_has_not_failed():
    rig = Rig(shutdown_timeout=60)
    rig.life.gate.draining = rig.engine.errored = True
    await rig.life._watch()
    assert not hasattr(rig.args, "duet_failure")


@pytest.mark.asyncio
async def test_vllms_keep_alive_variable_keeps_the_server_alive(monkeypatch):
    monkeypatch.setenv("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "1")
    rig = Rig(shutdown_timeout=60)
    rig.engine.errored = True
    await rig.life._watch()
    assert not rig.server.should_exit
