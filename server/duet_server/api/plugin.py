"""The endpoint plugin of vLLM 0.32: our routes over vLLM's, our chat handler in place of vLLM's."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.logger import init_logger

from duet_server.api.errors import RequestRefusedError, refuse
from duet_server.api.guard import check_json_request
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.options import ServerOptions
from duet_server.api.routes import router
from duet_server.api.served_model import ServedModel
from duet_server.api.serving import DuetServingChat

logger = init_logger(f"vllm.{__name__}")


@dataclass(frozen=True, slots=True)
class DuetState:
    """What our routes and handlers find as ``app.state.duet``."""

    served: ServedModel
    metrics: CompressionMetrics


class DuetEndpoints:
    """vLLM's ``EndpointPlugin`` protocol."""

    name = "duet"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Called once vLLM's own routes are in place; a route of the same path and method replaces vLLM's."""
        app.include_router(router)
        app.add_exception_handler(RequestRefusedError, refuse)
        app.dependency_overrides[validate_json_request] = check_json_request

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Called once vLLM's own handlers are set up.

        Raises:
            SettingsError: if the default compression cannot be served.
        """
        served = ServedModel.from_config(engine_client.vllm_config, ServerOptions.from_args(args))
        state.duet = DuetState(served, CompressionMetrics(served.name))
        if served.notice:
            logger.warning("%s", served.notice)
        state.openai_serving_chat = DuetServingChat(
            state.openai_serving_chat, served, state.duet.metrics, trust_mm_kwargs=args.trust_request_mm_kwargs
        )
