"""The endpoint plugin for vLLM 0.32: adds our routes and replaces vLLM's handlers with ours."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

from duet_server.api.error_spelling import refuse_invalid_body, refuse_invalid_request, refuse_wrong_type
from duet_server.api.errors import Refusal, refuse
from duet_server.api.generation.handlers import replace_handlers
from duet_server.api.generation.routes import router as generation_router
from duet_server.api.inspection.routes import router as inspection_router
from duet_server.api.lifecycle.health import router as health_router
from duet_server.api.lifecycle.request_id import RequestIdMiddleware
from duet_server.api.lifecycle.server_life import ServerLife
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.models import router as models_router
from duet_server.api.options import ServerOptions
from duet_server.api.playground.page import attach_playground
from duet_server.api.protection import protect
from duet_server.api.protection.body_limit import BodyTooLargeError, refuse_body
from duet_server.api.protection.json_body import check_json_body, refuse_nested, refuse_unreadable
from duet_server.api.served_model import ServedModel
from duet_server.api.transport.h11_protocol import parsed_by_h11
from duet_server.api.transport.head_method import HeadAsGet
from duet_server.api.transport.request_head import RequestHead

logger = init_logger(f"vllm.{__name__}")


@dataclass(frozen=True, slots=True)
class DuetState:
    """State that our routes and handlers share, stored as ``app.state.duet``."""

    served: ServedModel
    metrics: CompressionMetrics
    options: ServerOptions
    life: ServerLife


class DuetEndpoints:
    """Implements vLLM's ``EndpointPlugin`` protocol."""

    name = "duet"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """vLLM calls this after it has added its own routes. A route with the same path and method replaces vLLM's."""
        self._app = app
        app.include_router(generation_router)
        app.include_router(inspection_router)
        app.include_router(health_router)
        app.include_router(models_router)
        app.add_exception_handler(Refusal, refuse)
        app.add_exception_handler(BodyTooLargeError, refuse_body)
        app.add_exception_handler(HTTPException, refuse_unreadable)
        app.add_exception_handler(RecursionError, refuse_nested)
        app.add_exception_handler(EngineDeadError, _engine_died)
        app.dependency_overrides[validate_json_request] = check_json_body

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """vLLM calls this after it has set up its own handlers.

        Raises:
            SettingsError: if the default compression cannot be served.
        """
        options = ServerOptions.from_args(args)
        served = ServedModel.from_config(engine_client.vllm_config, options)
        life = ServerLife(engine_client, state, args, options.stall_timeout)
        state.duet = DuetState(served, CompressionMetrics(served.name), options, life)
        if options.playground:
            attach_playground(self._app)
        # The middleware stack exists and holds vLLM's metrics; add_middleware would build a second one without them.
        app = self._app.middleware_stack or self._app.build_middleware_stack()
        _replace_exception_handlers(app)
        app = protect(app, engine_client, args, options)
        check_head = partial(
            RequestHead, max_headers=args.h11_max_header_count, count_rejected=state.duet.metrics.count_rejected
        )
        for middleware in (life.gate.middleware, life.middleware, check_head, RequestIdMiddleware, HeadAsGet):
            app = middleware(app)  # the last one is outermost
        app = parsed_by_h11(app, state)
        self._app.middleware_stack = app
        if served.notice:
            logger.warning("%s", served.notice)
        replace_handlers(state, served, state.duet.metrics)


def _replace_exception_handlers(app: Any) -> None:
    """Put our handlers in place of vLLM's, which it registers after it has called ``attach_router``."""
    while not isinstance(app, ExceptionMiddleware):
        app = app.app
    app.add_exception_handler(RequestValidationError, refuse_invalid_body)
    app.add_exception_handler(ValidationError, refuse_invalid_request)
    app.add_exception_handler(TypeError, refuse_wrong_type)


async def _engine_died(request: Request, error: Exception) -> Response:
    state: DuetState = request.app.state.duet
    return await state.life.gate.engine_died(request, error)
