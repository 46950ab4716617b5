"""The life of a server: a stalled engine, SIGTERM with requests in flight, a killed engine, and the log."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.golden_cases import checkpoint_path
from tests.serving.running_server import RunningServer, chat, duet_server

CHECKPOINT = checkpoint_path("llava_gqa")
NUM_IN_FLIGHT = 16
MAX_TOKENS = 600
# Lines from C++ code, or from before a process has configured its logging.
NOT_LOGGED = ("Triton is installed", "[W", "nanobind:", " - ", "See https://nanobind")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("life") / "log"


@pytest.fixture(scope="module")
def server(log):
    flags = ("--duet-log-format", "json", "--duet-stall-timeout", "3", "--shutdown-timeout", "120")
    with duet_server(log, CHECKPOINT, *flags) as server:
        yield server


def process_of(server: RunningServer) -> psutil.Process:
    port = str(urlsplit(server.base_url).port)
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    (process,) = (child for child in alive if port in child.cmdline())
    return process


def engine_of(server: RunningServer) -> psutil.Process:
    (engine,) = (child for child in process_of(server).children() if "EngineCore" in " ".join(child.cmdline()))
    return engine


def worker_of(server: RunningServer) -> psutil.Process:
    (worker,) = (child for child in engine_of(server).children() if "Worker" in " ".join(child.cmdline()))
    return worker


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def assert_turned_away(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) > 0
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)
    assert error["request_id"] == response.headers["x-request-id"]


@contextmanager
def held_still(process: psutil.Process) -> Iterator[None]:
    """The engine or its worker does nothing, so requests that are sent meanwhile stay in flight."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


class InFlight:
    """NUM_IN_FLIGHT requests; every second one is a stream."""

    def __init__(self, server: RunningServer) -> None:
        self.client = httpx.AsyncClient(base_url=server.base_url, timeout=120)
        self.num_before = num_accepted(server.client.get("/metrics"))
        self.answers = [asyncio.create_task(self._ask(index)) for index in range(NUM_IN_FLIGHT)]

    async def _ask(self, index: int) -> httpx.Response:
        body = chat(f"Question {index}", max_tokens=MAX_TOKENS, stream=bool(index % 2))
        return await self.client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": f"inside-{index}"})

    async def until_all_are_accepted(self) -> None:
        async with asyncio.timeout(60):
            while num_accepted(await self.client.get("/metrics")) < self.num_before + NUM_IN_FLIGHT:
                await asyncio.sleep(0.02)


def num_accepted(metrics: httpx.Response) -> float:
    lines = metrics.text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("duet_requests_total{"))


def num_tokens(response: httpx.Response) -> int:
    """The number of tokens of a finished answer, whole or streamed."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return response.json()["usage"]["completion_tokens"]
    *events, last = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert last == "[DONE]"
    return sum(len(choice.get("token_ids") or []) for event in events for choice in json.loads(event)["choices"])


def is_ready(server: RunningServer) -> bool:
    return server.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("silent", [engine_of, worker_of])
def test_the_first_probe_sees_a_stall_of_an_idle_server(server, silent):
    wait_until(lambda: is_ready(server))
    with held_still(silent(server)):
        answers = [server.client.get(path) for path in ("/health", "/health/ready", "/ping")]
        assert [answer.status_code for answer in answers] == [503] * 3
        assert all("has not answered" in answer.json()["reason"] for answer in answers)
        assert server.client.get("/health/live").status_code == 200
    wait_until(lambda: is_ready(server))
    assert server.client.get("/health").content == b""


@pytest.mark.parametrize("silent", [engine_of, worker_of])
def test_a_stall_with_requests_is_seen_until_it_is_over(server, silent):
    async def ask_a_stalled_server():
        async with httpx.AsyncClient(base_url=server.base_url, timeout=120) as client:
            with held_still(silent(server)):
                asked = asyncio.create_task(client.post("/v1/chat/completions", json=chat("Are you there?")))
                async with asyncio.timeout(30):
                    while (await client.get("/health")).status_code == 200:
                        await asyncio.sleep(0.1)
                assert not asked.done()
            return await asked

    wait_until(lambda: is_ready(server))
    assert asyncio.run(ask_a_stalled_server()).status_code == 200
    wait_until(lambda: is_ready(server))


def test_one_id_may_be_on_several_requests_in_flight(server):
    async def ask_twice():
        async with httpx.AsyncClient(base_url=server.base_url, timeout=120) as client:
            headers = {"X-Request-Id": "same"}
            texts = ("One", "Another one")
            return await asyncio.gather(
                *(client.post("/v1/chat/completions", json=chat(text), headers=headers) for text in texts)
            )

    first, second = [response.json() for response in asyncio.run(ask_twice())]
    assert first["id"] == second["id"] == "chatcmpl-same"
    assert first["choices"] == server.ask("One")["choices"]
    assert second["choices"] == server.ask("Another one")["choices"]


def test_sigterm_lets_those_in_flight_finish_and_turns_others_away(server):
    process = process_of(server)

    async def terminate_with_requests_in_flight():
        async with httpx.AsyncClient(base_url=server.base_url, timeout=120) as newcomer:
            with held_still(engine_of(server)):
                in_flight = InFlight(server)
                await in_flight.until_all_are_accepted()
                process.send_signal(signal.SIGTERM)
                while (late := await in_flight.client.get("/v1/models")).status_code == 200:  # over an open connection
                    await asyncio.sleep(0)
                assert_turned_away(late)
                assert_turned_away(await newcomer.post("/v1/chat/completions", json=chat("Too late")))
                assert (await newcomer.get("/health/ready")).status_code == 503
                assert (await newcomer.get("/health/live")).status_code == 200
            return await asyncio.gather(*in_flight.answers)

    answers = asyncio.run(terminate_with_requests_in_flight())
    assert [answer.status_code for answer in answers] == [200] * NUM_IN_FLIGHT
    assert [num_tokens(answer) for answer in answers] == [MAX_TOKENS] * NUM_IN_FLIGHT
    assert process.wait(timeout=60) == 0


def test_the_log_is_json_and_knows_the_requests(server, log):
    lines = [line for line in log.read_text().splitlines() if line.strip() and not line.startswith(NOT_LOGGED)]
    records = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= set(record) for record in records)
    assert {"APIServer", "EngineCore"} <= {record["process"] for record in records}
    assert any("100% Completed | 1/1" in record["message"] for record in records), "no progress of loading"
    ids = {record.get("request_id") for record in records if record["logger"] == "uvicorn.access"}
    assert {"same", *(f"inside-{index}" for index in range(NUM_IN_FLIGHT))} <= ids


def test_a_killed_engine_ends_the_server(tmp_path):
    with duet_server(tmp_path / "log", CHECKPOINT) as server:
        process, engine = process_of(server), engine_of(server)

        async def kill_with_requests_in_flight():
            with held_still(engine):
                in_flight = InFlight(server)
                await in_flight.until_all_are_accepted()
            engine.kill()
            answers = await asyncio.gather(*in_flight.answers)
            return answers, await in_flight.client.get("/v1/models")

        answers, late = asyncio.run(kill_with_requests_in_flight())
        assert process.wait(timeout=5) not in (0, None)
        for answer in answers[::2]:
            assert_turned_away(answer)
        for stream in answers[1::2]:
            assert '"error"' in stream.text
        assert_turned_away(late)
    text = (tmp_path / "log").read_text()
    assert "100% Completed | 1/1" in text
    assert 'POST /v1/chat/completions HTTP/1.1" 503 Service Unavailable inside-0' in text
