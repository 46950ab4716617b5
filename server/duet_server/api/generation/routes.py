"""The routes that generate text: vLLM's own, with the ``compression`` field in their bodies."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from vllm.entrypoints.anthropic import api_router as vllm_messages
from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensResponse, AnthropicErrorResponse
from vllm.entrypoints.openai.chat_completion import api_router as vllm_chat
from vllm.entrypoints.openai.responses import api_router as vllm_responses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from duet_server.api.generation.schema import (
    DuetBatchChatCompletionRequest,
    DuetChatCompletionRequest,
    DuetChatCompletionResponse,
    DuetCountTokensRequest,
    DuetMessagesRequest,
    DuetMessagesResponse,
    DuetResponsesRequest,
)

router = APIRouter(dependencies=[Depends(validate_json_request)])

_STREAM: dict[str, dict[str, Any]] = {"text/event-stream": {}}


def answers(
    answer: dict[str, Any], *more_errors: HTTPStatus, error: type[Any] = ErrorResponse
) -> dict[int | str, dict[str, Any]]:
    """A route's responses for OpenAPI: the answer, and the errors that every route has."""
    errors = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR, *more_errors)
    return {HTTPStatus.OK.value: answer, **{status.value: {"model": error} for status in errors}}


@router.post(
    "/v1/chat/completions",
    responses=answers({"model": DuetChatCompletionResponse, "content": _STREAM}, HTTPStatus.NOT_IMPLEMENTED),
)
async def create_chat_completion(request: DuetChatCompletionRequest, raw_request: Request) -> Response:
    """OpenAI's Chat Completions API with the `compression` field."""
    # vLLM's function calls the handler in the app's state, where the plugin has put ours.
    return cast(Response, await vllm_chat.create_chat_completion(request, raw_request))


@router.post("/v1/chat/completions/batch", responses=answers({"model": DuetChatCompletionResponse}))
async def create_batch_chat_completion(request: DuetBatchChatCompletionRequest, raw_request: Request) -> Response:
    """Several conversations in one request, all compressed with the same settings."""
    return cast(Response, await vllm_chat.create_batch_chat_completion(request, raw_request))


@router.post("/v1/responses", responses=answers({"content": _STREAM}))
async def create_responses(request: DuetResponsesRequest, raw_request: Request) -> Response:
    """OpenAI's Responses API with the `compression` field."""
    return cast(Response, await vllm_responses.create_responses(request, raw_request))


@router.post(
    "/v1/messages",
    responses=answers({"model": DuetMessagesResponse, "content": _STREAM}, error=AnthropicErrorResponse),
)
async def create_messages(request: DuetMessagesRequest, raw_request: Request) -> Response:
    """Anthropic's Messages API with the `compression` field."""
    return cast(Response, await vllm_messages.create_messages(request, raw_request))


@router.post(
    "/v1/messages/count_tokens",
    responses=answers({"model": AnthropicCountTokensResponse}, error=AnthropicErrorResponse),
)
async def count_tokens(request: DuetCountTokensRequest, raw_request: Request) -> Response:
    """Counts the prompt tokens that would enter the language model."""
    return cast(Response, await vllm_messages.count_tokens(request, raw_request))
