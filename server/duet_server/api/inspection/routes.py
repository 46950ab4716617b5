"""The routes under ``/v1/compression``: what this server offers, what a request would cost, which patches it keeps."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from duet_server.api.generation.routes import answers
from duet_server.api.generation.schema import DuetChatCompletionRequest
from duet_server.api.generation.serving_chat import DuetServingChat
from duet_server.api.inspection.plan_body import plan_body
from duet_server.api.inspection.preview import preview_chat
from duet_server.api.inspection.schema import CompressionInfo, CompressionPlan, CompressionPreview
from duet_server.api.served_model import ServedModel

router = APIRouter()


@router.get("/v1/compression", response_model=CompressionInfo, response_model_exclude_unset=True)
async def show_compression(raw_request: Request) -> dict[str, Any]:
    """The model's boundaries, its presets as token counts, and the server's limits."""
    served: ServedModel = raw_request.app.state.duet.served
    about = served.describe()
    if served.shape is not None:
        # vLLM's processors of images have this method, from which vLLM sizes its encoder's memory.
        info = raw_request.app.state.openai_serving_chat.renderer.get_mm_processor().info
        if hasattr(info, "get_max_image_tokens"):
            about["modalities"]["image"]["max_tokens"] = info.get_max_image_tokens()
    return about


@router.post(
    "/v1/compression/plan",
    dependencies=[Depends(validate_json_request)],
    responses=answers({"model": CompressionPlan}, HTTPStatus.NOT_IMPLEMENTED),
)
async def plan_compression(request: DuetChatCompletionRequest, raw_request: Request) -> Response:
    """What a chat completion with this body would cost: tokens of every segment, KV cache bytes and FLOPs."""
    handler: DuetServingChat = raw_request.app.state.openai_serving_chat
    planned = await handler.plan_chat(request)
    if isinstance(planned, ErrorResponse):
        return JSONResponse(planned.model_dump(), status_code=planned.error.code)
    return JSONResponse(plan_body(planned, handler.served))


@router.post(
    "/v1/compression/preview",
    dependencies=[Depends(validate_json_request)],
    responses=answers({"model": CompressionPreview, "content": {"image/png": {}}}, HTTPStatus.NOT_IMPLEMENTED),
)
@with_cancellation  # type: ignore[untyped-decorator]
async def preview_compression(request: DuetChatCompletionRequest, raw_request: Request) -> Response:
    """The costs as from `/v1/compression/plan`, and the patches that each stage kept. The engine runs the prompt.

    With `Accept: image/png`, the response is the pictures, with dropped patches dark and merged patches tinted.
    """
    handler: DuetServingChat = raw_request.app.state.openai_serving_chat
    preview = await preview_chat(handler, request, raw_request)
    if isinstance(preview, ErrorResponse):
        return JSONResponse(preview.model_dump(), status_code=preview.error.code)
    if "image/png" in raw_request.headers.get("accept", ""):
        return Response(await run_in_threadpool(preview.png), media_type="image/png")
    return JSONResponse(preview.body(handler))
