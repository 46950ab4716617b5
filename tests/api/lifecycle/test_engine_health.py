from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from duet_server.api.lifecycle.engine_health import EnginePulse


class Engine(SimpleNamespace):
    """Answers while ``steps`` is set."""

    def __init__(self):
        super().__init__(errored=False, asked=0, error=None, steps=asyncio.Event())

    async def collective_rpc(self, method):
        assert method == "check_health"
        self.asked += 1
        await self.steps.wait()
        if self.error:
            raise self.error


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def rig():
    engine = Engine()
    pulse = EnginePulse(engine, limit_s=0.2)
    task = asyncio.create_task(pulse.run())
    yield engine, pulse, task
    task.cancel()


@pytest.mark.asyncio
async def test_an_engine_is_ready_once_it_answers(rig):
    engine, pulse, _ = rig
    await asyncio.sleep(0)
    assert "has not answered yet" in pulse.problem
    engine.steps.set()
    await until(lambda: pulse.problem is None)


@pytest.mark.asyncio
async def test_a_stalled_engine_is_reported_asked_once_and_recovers(rig):
    engine, pulse, _ = rig
    engine.steps.set()
    await until(lambda: pulse.problem is None)
    engine.steps.clear()
    await until(lambda: pulse.problem)
    assert "has not stepped for" in pulse.problem
    asked = engine.asked
    await asyncio.sleep(0.3)
    assert engine.asked == asked
    engine.steps.set()
    await until(lambda: pulse.problem is None)


@pytest.mark.asyncio
async def test_failing_workers_are_a_problem(rig):
    engine, pulse, task = rig
    engine.error = RuntimeError("Call to collective_rpc method failed")
    engine.steps.set()
    await until(lambda: engine.asked > 2)
    assert pulse.problem
    engine.error = None
    await until(lambda: pulse.problem is None)
    assert not task.done()


@pytest.mark.asyncio
async def test_a_dead_engine_is_not_asked_again(rig):
    engine, pulse, task = rig
    engine.error = EngineDeadError()
    engine.steps.set()
    await asyncio.wait_for(task, 5)
    engine.errored = True
    assert "died" in pulse.problem
