"""The routes: chat completions with the ``compression`` field, and what this server's compression comes to."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from vllm.entrypoints.openai.chat_completion import api_router as vllm_chat
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from duet_server.api.preview import preview_chat
from duet_server.api.schema import (
    CompressionInfo,
    CompressionPlan,
    CompressionPreview,
    DuetChatCompletionRequest,
    DuetChatCompletionResponse,
)
from duet_server.api.served_model import ServedModel
from duet_server.api.serving import DuetServingChat
from duet_server.api.whatif import plan_body

router = APIRouter()

_ERRORS: dict[int | str, dict[str, Any]] = {
    status.value: {"model": ErrorResponse}
    for status in (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.NOT_IMPLEMENTED,
    )
}
_ANSWER = {"model": DuetChatCompletionResponse, "content": {"text/event-stream": {}}}


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(validate_json_request)],
    responses={HTTPStatus.OK.value: _ANSWER, **_ERRORS},
)
async def create_chat_completion(request: DuetChatCompletionRequest, raw_request: Request) -> Response:
    """vLLM's own route with our request model; its handler is the one that the plugin has put in place."""
    return cast(Response, await vllm_chat.create_chat_completion(request, raw_request))


@router.get("/v1/compression", response_model=CompressionInfo, response_model_exclude_unset=True)
async def show_compression(raw_request: Request) -> dict[str, Any]:
    """Boundaries, presets in this model's counts, limits."""
    served: ServedModel = raw_request.app.state.duet.served
    return served.describe()


@router.post(
    "/v1/compression/plan",
    dependencies=[Depends(validate_json_request)],
    responses={HTTPStatus.OK.value: {"model": CompressionPlan}, **_ERRORS},
)
async def plan_compression(request: DuetChatCompletionRequest, raw_request: Request) -> Response:
    """What a chat completion with this body would come to: token counts of every stage, KV bytes and FLOPs."""
    handler: DuetServingChat = raw_request.app.state.openai_serving_chat
    planned = await handler.plan_chat(request)
    if isinstance(planned, ErrorResponse):
        return JSONResponse(planned.model_dump(), status_code=planned.error.code)
    return JSONResponse(plan_body(planned, handler.served))


@router.post(
    "/v1/compression/preview",
    dependencies=[Depends(validate_json_request)],
    responses={HTTPStatus.OK.value: {"model": CompressionPreview, "content": {"image/png": {}}}, **_ERRORS},
)
@with_cancellation  # type: ignore[untyped-decorator]
async def preview_compression(request: DuetChatCompletionRequest, raw_request: Request) -> Response:
    """The same, and which patches each stage kept of the pictures: the engine runs the prompt for one token.

    Under `Accept: image/png` the pictures themselves, with what was dropped dark and what was merged tinted.
    """
    handler: DuetServingChat = raw_request.app.state.openai_serving_chat
    preview = await preview_chat(handler, request, raw_request)
    if isinstance(preview, ErrorResponse):
        return JSONResponse(preview.model_dump(), status_code=preview.error.code)
    if "image/png" in raw_request.headers.get("accept", ""):
        return Response(await run_in_threadpool(preview.png), media_type="image/png")
    return JSONResponse(preview.body(handler))
