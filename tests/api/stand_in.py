"""vLLM's whole API server, its renderer and its image processor, with an engine that only pretends to generate."""

from __future__ import annotations

import base64
import io
import os
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fastapi import FastAPI
from PIL import Image
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.inputs import EngineInput
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers.registry import renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from duet_server.cli import parse_serve_args
from duet_server.plan import RequestPlan, VisualRows
from duet_server.plan.wire import decode_plan

ANSWER = "Yes, it is."
TASKS = ("generate",)


@dataclass
class Call:
    """A request that reached the engine, and the plan that the engine would make from it."""

    prompt: EngineInput
    params: SamplingParams
    plan: RequestPlan | None

    @property
    def visual(self) -> VisualRows:
        return VisualRows.of(self.prompt.get("mm_placeholders", {}).get("image", []))

    @property
    def spans(self) -> list[tuple[int, int]]:
        return self.visual.spans


@dataclass
class StandInEngine:
    """The parts of vLLM's engine client that the API uses. It validates as the engine does and answers ANSWER."""

    vllm_config: VllmConfig
    calls: list[Call] = field(default_factory=list)
    errored: bool = False
    is_running: bool = True
    is_stopped: bool = False

    def __post_init__(self) -> None:
        self.model_config = self.vllm_config.model_config
        self.renderer = renderer_from_config(self.vllm_config)
        self.input_processor = InputProcessor(self.vllm_config, self.renderer)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Every request is admitted."""

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return TASKS

    async def do_log_stats(self) -> None:
        """This engine has no statistics."""

    async def generate(
        self, prompt: EngineInput, params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncIterator[RequestOutput]:
        self.input_processor.process_inputs(request_id, prompt, params, TASKS)
        num_boundaries = len(self.vllm_config.additional_config["duet"]["boundaries"])
        call = Call(prompt, params, None)
        call.plan = decode_plan(params.extra_args or {}, len(prompt["prompt_token_ids"]), call.visual, num_boundaries)
        self.calls.append(call)
        token_ids = self.renderer.get_tokenizer().encode(ANSWER, add_special_tokens=False)
        logprobs = (
            [{token_id: Logprob(-0.5, 1, "?")} for token_id in token_ids] if params.logprobs is not None else None
        )
        for index in range(params.n):
            output = CompletionOutput(index, ANSWER, token_ids, None, logprobs, finish_reason="stop")
            outputs = [output] if params.n == 1 or params.output_kind.name == "DELTA" else [output] * params.n
            yield RequestOutput(request_id, prompt.get("prompt"), prompt["prompt_token_ids"], None, outputs, True)


@dataclass
class StandInServer:
    """An app whose state is complete, but whose lifespan has not begun."""

    app: FastAPI
    engine: StandInEngine
    args: Namespace

    @property
    def last_call(self) -> Call:
        return self.engine.calls[-1]


async def stand_in_server(model: str | Path, *flags: str) -> StandInServer:
    """``duet-server serve MODEL FLAGS`` without the engine."""
    with patch.dict(os.environ, {"VLLM_PLUGINS": "duet"}):
        args = parse_serve_args(["serve", str(model), "--dtype", "float32", *flags])
        args.model = args.model_tag
        vllm_config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
        engine = StandInEngine(vllm_config)
        app = build_app(args, TASKS, vllm_config.model_config)
        await init_app_state(engine, app.state, args, TASKS)
    return StandInServer(app, engine, args)


def picture_url(size: tuple[int, int] = (200, 160), color: str = "red") -> str:
    """A picture as a data URL."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_part(color: str = "red") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": picture_url(color=color)}}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    """A user's message; strings are its text parts."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


QUESTION = user(image_part(), "What color is the circle?")
