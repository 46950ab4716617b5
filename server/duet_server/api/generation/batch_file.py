"""``duet-server run-batch``: vLLM's batch file runner with our handlers."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import Any

from fastapi import Request
from pydantic import ValidationError, ValidationInfo, field_validator
from starlette.datastructures import State
from vllm.entrypoints.launchers import run_batch as vllm_run_batch
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.run_batch import BatchRequestInput
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError

from duet_server.api.error_spelling import blame, in_clients_words
from duet_server.api.errors import Refusal, locate
from duet_server.api.generation.handlers import replace_handlers
from duet_server.api.generation.schema import DuetChatCompletionRequest
from duet_server.api.generation.serving_chat import DuetServingChat
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.options import ServerOptions
from duet_server.api.protection import cap_images
from duet_server.api.protection.guard import check_body
from duet_server.api.protection.media import register_connector
from duet_server.api.served_model import ServedModel

_ROUTE = "/v1/chat/completions"


def run_batch(args: Namespace) -> None:
    """Answer every request of ``args.input_file`` in ``args.output_file``; a failed request does not end the run."""
    vllm_run_batch.init_app_state = _init_state  # vLLM's runner creates no app, so it loads no endpoint plugin
    vllm_run_batch.BatchRequestInput = _Line
    asyncio.run(vllm_run_batch.main(args))


async def _init_state(engine_client: Any, state: State, args: Namespace, supported_tasks: Any) -> None:
    await init_app_state(engine_client, state, args, supported_tasks)
    options = ServerOptions.from_args(args)
    register_connector(options)
    cap_images(engine_client.model_config, args, options.max_images)
    served = ServedModel.from_config(engine_client.vllm_config, options)
    replace_handlers(state, served, CompressionMetrics(served.name))
    state.openai_serving_chat = _BatchFileChat(state.openai_serving_chat, options)


class _Line(BatchRequestInput):
    """A line of the file. A chat's body stays as it is: our handler checks it, so a bad one does not end the run."""

    @field_validator("body", mode="plain")
    @classmethod
    def check_type_for_url(cls, value: Any, info: ValidationInfo) -> Any:
        is_chat = info.data["url"] == _ROUTE
        return value if is_chat else BatchRequestInput.check_type_for_url(value, info)


class _BatchFileChat(DuetServingChat):
    """Makes the checks that a server makes before its handlers, because these requests pass no route."""

    def __init__(self, handler: DuetServingChat, options: ServerOptions) -> None:
        super().__init__(handler, handler.online_renderer)
        self.options = options

    async def create_chat_completion(self, body: Any, raw_request: Request | None = None) -> Any:
        """``body`` is a line's, as JSON decodes it."""
        try:
            check_body(body, _ROUTE, self.options)
            request = DuetChatCompletionRequest.model_validate(body)
            return await super().create_chat_completion(request, raw_request)
        except ValidationError as error:
            field, message = blame(error.errors(), body)
            return create_error_response(message, param=field)
        except Refusal as error:
            locate(error, body)
            raise
        except VLLMValidationError as error:
            message, param = in_clients_words(str(error), error.parameter, body)
            return create_error_response(message, param=param)
