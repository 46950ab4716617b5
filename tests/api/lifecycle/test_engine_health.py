from __future__ import annotations

import asyncio
import functools
import selectors
from types import SimpleNamespace

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from duet_server.api.lifecycle.engine_health import ANSWER_S, EnginePulse
from duet_server.api.lifecycle.gate import Gate

LIMIT_S = 20.0
ASK_S = LIMIT_S / 4


class FakeClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer, so that no test waits."""

    def __init__(self):
        self.now = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout=None):
                loop.now += timeout or 0.0
                return super().select(0)

        super().__init__(Selector())

    def time(self):
        return self.now


def fake_clock(test):
    @functools.wraps(test)
    def run(**arguments):
        with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
            runner.run(test(**arguments))

    return run


def now():
    return asyncio.get_running_loop().time()


class Engine(SimpleNamespace):
    """Answers while ``steps`` is set, or fails with ``error``."""

    def __init__(self, num_clients=1):
        super().__init__(errored=False, error=None, asked_at=[], in_background=False, steps=asyncio.Event())
        self.steps.set()
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(_api_process_count=num_clients))
        self.output_processor = SimpleNamespace(has_unfinished_requests=lambda: self.in_background)

    async def collective_rpc(self, method):
        assert method == "check_health"
        self.asked_at.append(now())
        await self.steps.wait()
        if self.error:
            raise self.error


class Rig:
    """A pulse that runs, of an engine that answers."""

    def __init__(self, **engine):
        self.engine = Engine(**engine)
        self.gate = Gate(self.engine)
        self.pulse = EnginePulse(self.engine, self.gate, LIMIT_S)
        self.running = asyncio.create_task(self.pulse.run())

    @property
    def num_asked(self):
        return len(self.engine.asked_at)

    async def request(self, seconds):
        """A request that is in flight for so long."""

        async def app(scope, receive, send):
            await asyncio.sleep(seconds)

        await self.gate.middleware(app)({"type": "http", "path": "/v1/x"}, None, None)

    async def first_problem(self):
        """When the first problem is seen."""
        while not self.pulse.problem:
            await asyncio.sleep(0.25)
        return now()


@fake_clock
async def test_an_engine_is_healthy_once_it_answers():
    rig = Rig()
    rig.engine.steps.clear()
    await asyncio.sleep(1)
    assert "has not answered yet" in await rig.pulse.check()
    rig.engine.steps.set()
    assert await rig.pulse.check() is None


@fake_clock
async def test_an_idle_engine_is_not_asked():
    rig = Rig()
    await asyncio.sleep(1000 * LIMIT_S + 1)
    assert rig.engine.asked_at == [0]
    await rig.request(seconds=1)
    await asyncio.sleep(1000 * LIMIT_S)
    assert rig.num_asked == 2, "once after the request, to know that it is over"
    assert rig.pulse.problem is None


@fake_clock
async def test_a_stalled_engine_with_requests_is_seen_within_30_s():
    rig = Rig()
    request = asyncio.create_task(rig.request(seconds=1000))
    await asyncio.sleep(101)
    assert rig.num_asked == pytest.approx(101 / ASK_S, abs=2)
    stalled_at, asked = now(), rig.num_asked
    rig.engine.steps.clear()
    assert await rig.first_problem() - stalled_at < 30
    assert "has not answered for 2" in await rig.pulse.check()
    assert rig.num_asked == asked + 1, "the last question stays pending"
    rig.engine.steps.set()
    await asyncio.sleep(0)
    assert await rig.pulse.check() is None
    request.cancel()


@pytest.mark.parametrize("in_background", [False, True])
@fake_clock
async def test_a_long_step_is_no_stall(in_background):
    rig = Rig()
    await asyncio.sleep(1)
    request = asyncio.create_task(rig.request(seconds=0 if in_background else 1000))
    rig.engine.in_background = in_background
    rig.engine.steps.clear()
    await asyncio.sleep(0)
    while now() < LIMIT_S:
        started_at = now()
        assert await rig.pulse.check() is None
        assert now() == started_at, "a probe does not wait for a step"
        await asyncio.sleep(0.25)
    request.cancel()


@fake_clock
async def test_the_first_probe_sees_a_stall_of_an_idle_engine():
    rig = Rig()
    await asyncio.sleep(3600)
    assert await rig.pulse.check() is None
    rig.engine.steps.clear()
    await asyncio.sleep(3600)
    assert rig.pulse.problem is None, "nobody has asked"
    asked_at = now()
    assert "has not answered" in await rig.pulse.check()
    assert now() - asked_at == pytest.approx(ANSWER_S)
    assert rig.pulse.problem
    await rig.request(seconds=1)
    assert rig.pulse.problem, "a request that needs no engine proves nothing"
    rig.engine.steps.set()
    assert await rig.pulse.check() is None


@fake_clock
async def test_probes_share_one_question():
    rig = Rig()
    await asyncio.sleep(1)
    rig.engine.steps.clear()
    probes = [asyncio.create_task(rig.pulse.check()) for _ in range(10)]
    await asyncio.sleep(0.1)
    rig.engine.steps.set()
    assert await asyncio.gather(*probes) == [None] * 10
    assert rig.num_asked == 2


@fake_clock
async def test_the_step_of_a_request_that_was_aborted_may_go_on():
    rig = Rig()
    await asyncio.sleep(1)
    request = asyncio.create_task(rig.request(seconds=1000))
    await asyncio.sleep(1)
    rig.engine.steps.clear()
    request.cancel()
    await asyncio.sleep(0)
    assert await rig.pulse.check() is None
    assert await rig.first_problem() < 2 + LIMIT_S + ASK_S


@fake_clock
async def test_a_request_that_arrives_during_a_probe_may_delay_the_answer():
    rig = Rig()
    await asyncio.sleep(1)
    rig.engine.steps.clear()
    probe = asyncio.create_task(rig.pulse.check())
    await asyncio.sleep(ANSWER_S / 2)
    request = asyncio.create_task(rig.request(seconds=1000))
    assert await probe is None
    assert await rig.first_problem() == pytest.approx(1 + LIMIT_S, abs=0.5)
    request.cancel()


@fake_clock
async def test_requests_of_other_api_processes_may_delay_the_answer():
    rig = Rig(num_clients=2)
    await asyncio.sleep(1)
    rig.engine.steps.clear()
    assert await rig.pulse.check() is None
    assert await rig.first_problem() == pytest.approx(1 + LIMIT_S, abs=0.5)


@fake_clock
async def test_failing_workers_are_a_problem_until_they_work():
    rig = Rig()
    await asyncio.sleep(1)
    rig.engine.error = RuntimeError("Call to collective_rpc method failed")
    assert "health check" in await rig.pulse.check()
    asked = rig.num_asked
    await asyncio.sleep(2 * ASK_S)
    assert rig.num_asked > asked
    rig.engine.error = None
    await asyncio.sleep(2 * ASK_S)
    assert rig.pulse.problem is None
    assert not rig.running.done()


@fake_clock
async def test_a_dead_engine_is_not_asked_again():
    rig = Rig()
    await asyncio.sleep(1)
    rig.engine.error = EngineDeadError()
    await rig.pulse.check()
    rig.engine.errored = True
    asked = rig.num_asked
    assert await rig.pulse.check() == "The engine has died."
    await asyncio.wait_for(rig.running, 2 * ASK_S)
    assert rig.num_asked == asked
