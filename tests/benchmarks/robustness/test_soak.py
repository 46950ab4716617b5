"""The soak's checks, against a server with prepared answers."""

from __future__ import annotations

import asyncio
import json
import random
import time

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.robustness.soak import Record, _ask, _client, read_gauges, relative_slope
from benchmarks.robustness.soak_requests import PATH, SoakRequest, make_bodies

REQUEST = SoakRequest(json.dumps({"max_tokens": 3}).encode(), (7, 8, 9), 1.0)


async def ask(behavior, *, tokens=(7, 8, 9), last="[DONE]", status=200, delay=0.0):
    """The fault that one of the soak's behaviors finds in an answer of these tokens."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay)
        if not (await request.json()).get("stream"):
            return web.json_response({"choices": [{"token_ids": list(tokens)}]}, status=status)
        response = web.StreamResponse()
        await response.prepare(request)
        for event in [*({"choices": [{"token_ids": [token]}]} for token in tokens), last]:
            text = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {text}\n\n".encode())
        return response

    app = web.Application()
    app.router.add_post(PATH, answer)
    async with TestServer(app) as server, aiohttp.ClientSession(server.make_url("/"), raise_for_status=True) as session:
        return await _ask(session, REQUEST, behavior, random.Random(0))


@pytest.mark.parametrize("behavior", ["whole", "stream", "gone before the answer", "gone amid the answer"])
async def test_the_same_answer_as_alone_is_no_fault(behavior):
    assert await ask(behavior) is None


@pytest.mark.parametrize("behavior", ["whole", "stream", "gone before the answer", "gone amid the answer"])
async def test_another_token_is_a_fault(behavior):
    assert "answered [6, " in await ask(behavior, tokens=(6, 8, 9))


@pytest.mark.parametrize("behavior", ["whole", "stream"])
@pytest.mark.parametrize("tokens", [(7, 8), (7, 8, 9, 10), ()], ids=str)
async def test_a_token_too_few_or_too_many_is_a_fault(behavior, tokens):
    assert "alone [7, 8, 9]" in await ask(behavior, tokens=tokens)


async def test_a_stream_that_breaks_off_or_fails_is_lost():
    with pytest.raises(ValueError, match=r"without \[DONE\]"):
        await ask("stream", last='{"choices": []}')
    with pytest.raises(ValueError, match="Internal"):
        await ask("stream", last='{"error": "Internal"}')


async def test_a_client_that_hangs_up_records_no_fault():
    assert await ask("gone before the answer", delay=5) is None


async def test_a_lost_answer_is_recorded():
    record = Record()
    async with aiohttp.ClientSession("http://127.0.0.1:9") as session:  # nothing listens on this port
        await _client(session, [REQUEST], "0", time.monotonic() + 0.05, record)
    assert record.faults
    assert "lost: ClientConnectorError" in record.faults[0]


def test_bodies_are_mixed_and_the_seeds():
    bodies = make_bodies(36, seed=0)
    assert bodies == make_bodies(36, seed=0)
    assert len({json.dumps(body) for body in bodies}) == 36
    parts = [[part["type"] for part in body["messages"][0]["content"]] for body in bodies]
    assert {part.count("image_url") for part in parts} == {0, 1, 2}


def test_gauges_are_summed_over_engines():
    metrics = """
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
"""
    running, waiting, used = read_gauges(metrics).values()
    assert (running, waiting, used) == (3.0, 0.0, 0.25)


def test_slope_is_the_lines_rise_by_the_mean():
    assert relative_slope([(10, 100), (11, 101), (12, 102)]) == pytest.approx(2 / 101)
    assert relative_slope([(0, 100), (1, 130), (2, 130), (3, 100)]) == pytest.approx(0)
