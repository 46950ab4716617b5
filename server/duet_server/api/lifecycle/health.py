"""Health for orchestrators: whether the process answers, and whether requests should be sent to it."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from duet_server.api.lifecycle.gate import RETRY_AFTER_S

router = APIRouter()


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The API process answers, whatever its engine does: if not, restart it."""
    return {"status": "ok"}


@router.get("/health/ready", responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {}})
async def ready(raw_request: Request) -> Response:
    """The engine steps and new requests are let in: if not, send them elsewhere."""
    problem = raw_request.app.state.duet.life.problem
    if problem is None:
        return JSONResponse({"status": "ok"})
    body = {"status": "unavailable", "reason": problem}
    return JSONResponse(body, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_S)})
