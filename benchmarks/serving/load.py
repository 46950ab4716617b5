"""The load: chat requests of exact length, sent by the library behind ``vllm bench serve``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import os
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoTokenizer
from vllm.benchmarks.datasets import SampleRequest
from vllm.benchmarks.serve import TaskType, benchmark

from benchmarks.servers import MODEL_NAME, Server, cpu_seconds
from benchmarks.serving.report import BUSY

QUESTION = "what is the colour of that car and which animal sits next to it "


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request: with a picture, or text only. ``num_text`` counts text tokens, chat template included."""

    name: str
    num_text: int
    num_output: int
    has_picture: bool = True
    compression: str | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """Sends loads.

    ``checkpoint`` has the tokenizer that counts the tokens of prompts. Pictures are squares of ``picture_size`` pixels.
    """

    checkpoint: Path
    picture_size: int

    def measure(
        self, server: Server, load: Load, num_prompts: int, concurrency: int, seed: int | str
    ) -> dict[str, float]:
        """Throughput, latencies and busy cores of one pass. The same seed gives the same prompts and pictures.

        Raises:
            RuntimeError: if a request fails.
        """
        return _summary(asyncio.run(self._send(server, load, num_prompts, concurrency, seed)))

    def most_answering(self, server: Server, load: Load, num_prompts: int, seed: int | str) -> int:
        """Send everything at once. Returns the most requests that were between first and last token at the same time.

        The server's own gauge of running requests is not enough: it also counts requests that hold only the text
        before a picture.
        """
        result = asyncio.run(self._send(server, load, num_prompts, num_prompts, seed))
        _summary(result)
        times = zip(result["start_times"], result["ttfts"], result["latencies"], strict=True)
        return most_overlapping((start + ttft, start + latency) for start, ttft, latency in times)

    async def _send(
        self, server: Server, load: Load, num_prompts: int, concurrency: int, seed: int | str
    ) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint)
        # Make all before the clock starts.
        requests = make_requests(load, tokenizer, num_prompts, seed, self.picture_size)
        body: dict[str, Any] = {"temperature": 0}
        if load.compression is not None:
            body["compression"] = load.compression
        start, client_start, server_start = time.perf_counter(), time.process_time(), cpu_seconds()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            result = await benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type="openai-chat",
                api_url=f"{server.url}/v1/chat/completions",
                base_url=server.url,
                model_id=MODEL_NAME,
                model_name=MODEL_NAME,
                tokenizer=tokenizer,
                input_requests=requests,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=["ttft", "tpot"],
                selected_percentiles=[50, 99],
                ignore_eos=True,
                goodput_config_dict={},
                max_concurrency=concurrency,
                lora_modules=None,
                extra_headers=None,
                extra_body=body,
                ready_check_timeout_sec=0,  # a trial run would put the first picture into the caches
            )
        client, seconds = time.process_time() - client_start, time.perf_counter() - start
        return {**result, **_busy_cores(client, server_start, cpu_seconds(), seconds)}


def _busy_cores(
    client: float, before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Busy cores of the client, of the busiest API server and of the engine. One near 1 may be the bottleneck."""
    cores = {process: (spent - before.get(process, 0.0)) / seconds for process, spent in after.items()}
    engine = {process: busy for process, busy in cores.items() if "EngineCore" in process or "Worker" in process}
    return {
        "client_cores": client / seconds,
        "api_cores": max((busy for process, busy in cores.items() if process not in engine), default=0.0),
        "engine_cores": max(engine.values(), default=0.0),
    }


def make_requests(
    load: Load, tokenizer: Any, num_prompts: int, seed: int | str, picture_size: int
) -> list[SampleRequest]:
    """Requests that differ in text and picture."""
    rng = random.Random(seed)
    num_template = _num_tokens(tokenizer, _messages("", load.has_picture)) - int(load.has_picture)
    assert num_template < load.num_text, f"{num_template=} {load=}"
    requests = []
    for index in range(num_prompts):
        text = _text(rng, load.num_text - num_template)  # one token per character
        picture = _picture_url(rng.getrandbits(32), picture_size) if load.has_picture else None
        requests.append(
            SampleRequest(
                prompt=text,
                prompt_len=load.num_text,
                expected_output_len=load.num_output,
                request_id=str(index),
                chat_messages=_messages(text, load.has_picture, picture),
            )
        )
    return requests


def _messages(text: str, has_picture: bool, picture: str | None = None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": picture}}] if has_picture else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _num_tokens(tokenizer: Any, messages: list[dict[str, Any]]) -> int:
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return len(tokenizer.encode(prompt, add_special_tokens=False))


def _text(rng: random.Random, length: int) -> str:
    """A repeated question that starts at a random letter, cut to ``length`` characters."""
    start = rng.randrange(len(QUESTION))
    return (QUESTION * (length // len(QUESTION) + 2))[start : start + length]


@functools.cache  # every mode gets the same pictures
def _picture_url(seed: int, size: int) -> str:
    """A square JPEG of soft random shapes as a data URL."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(encoded, format="JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def most_overlapping(spans: Iterable[tuple[float, float]]) -> int:
    """The most time spans ``[start, end)`` that overlap at one instant."""
    edges = sorted(edge for start, end in spans for edge in ((start, 1), (end, -1)))  # at a tie, ends come first
    return max(accumulate(step for _, step in edges), default=0)


def _summary(result: dict[str, Any]) -> dict[str, float]:
    if result["failed"]:
        raise RuntimeError(f"{result['failed']} requests failed, such as: {next(filter(None, result['errors']))}")
    latencies = {f"{kind}_p{rank}_ms": result[f"p{rank}_{kind}_ms"] for kind in ("ttft", "tpot") for rank in (50, 99)}
    return {
        "requests_per_second": result["request_throughput"],
        **{name: float(value) for name, value in latencies.items()},
        **{name: result[name] for name in BUSY},
        "prompt_tokens": result["total_input_tokens"] / result["completed"],
        "duration_s": result["duration"],
    }
