"""``GET /v1/models/{id}``, which vLLM does not have."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from vllm.entrypoints.openai.models import api_router as vllm_models
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse, ModelCard

router = APIRouter()


class ModelNotFound(ErrorInfo):
    """OpenAI's error for a model that is not served. SDKs look at its code, which is a word here."""

    type: Literal["NotFoundError"] = "NotFoundError"
    param: Literal["model"] = "model"
    code: Literal["model_not_found"] = "model_not_found"


class ModelNotFoundResponse(ErrorResponse):
    """The body of such an answer."""

    error: ModelNotFound


@router.get(
    "/v1/models/{model_id:path}",
    responses={
        HTTPStatus.OK.value: {"model": ModelCard},
        HTTPStatus.NOT_FOUND.value: {"model": ModelNotFoundResponse},
    },
)
async def show_model(model_id: str, raw_request: Request) -> Response:
    """The model or adapter with this id, as `/v1/models` lists it."""
    if not model_id:  # a slash after the path of the list
        return cast(Response, await vllm_models.show_available_models(raw_request))
    cards = (await vllm_models.models(raw_request).show_available_models()).data
    for card in cards:
        if card.id == model_id:
            return JSONResponse(card.model_dump())
    served = ", ".join(f"`{card.id}`" for card in cards)
    error = ModelNotFound(message=f"The model `{model_id}` does not exist. This server has {served}.")
    return JSONResponse(ModelNotFoundResponse(error=error).model_dump(), HTTPStatus.NOT_FOUND)
