"""``duet-server run-batch``: vLLM's batch file runner with our handlers."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import Any

from fastapi import Request
from starlette.datastructures import State
from vllm.entrypoints.launchers import run_batch as vllm_run_batch
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from duet_server.api.generation.handlers import replace_handlers
from duet_server.api.generation.serving_chat import DuetServingChat
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.options import ServerOptions
from duet_server.api.protection import cap_images
from duet_server.api.protection.guard import refuse_many_answers, refuse_reserved_keys
from duet_server.api.protection.media import register_connector
from duet_server.api.served_model import ServedModel


def run_batch(args: Namespace) -> None:
    """Answer every request of ``args.input_file`` in ``args.output_file``; a failed request does not end the run."""
    vllm_run_batch.init_app_state = _init_state  # vLLM's runner creates no app, so it loads no endpoint plugin
    asyncio.run(vllm_run_batch.main(args))


async def _init_state(engine_client: Any, state: State, args: Namespace, supported_tasks: Any) -> None:
    await init_app_state(engine_client, state, args, supported_tasks)
    options = ServerOptions.from_args(args)
    register_connector(options)
    cap_images(engine_client.model_config, args, options.max_images)
    served = ServedModel.from_config(engine_client.vllm_config, options)
    replace_handlers(state, served, CompressionMetrics(served.name))
    state.openai_serving_chat = _BatchFileChat(state.openai_serving_chat, options.max_n)


class _BatchFileChat(DuetServingChat):
    """Makes the checks that a server makes before its handlers, because these requests pass no route."""

    def __init__(self, handler: DuetServingChat, max_n: int | None) -> None:
        super().__init__(handler, handler.online_renderer)
        self.max_n = max_n

    async def create_chat_completion(self, request: ChatCompletionRequest, raw_request: Request | None = None) -> Any:
        refuse_reserved_keys(vars(request))
        refuse_many_answers(vars(request), self.max_n)
        return await super().create_chat_completion(request, raw_request)
