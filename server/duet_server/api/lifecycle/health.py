"""Health routes for orchestrators: whether the process is alive, and whether it should receive requests."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from duet_server.api.lifecycle.gate import RETRY_AFTER_S

router = APIRouter()


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Liveness: the API process answers, even if its engine does not. If this fails, restart the process."""
    return {"status": "ok"}


@router.get("/health/ready", responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {}})
async def ready(raw_request: Request) -> Response:
    """Readiness: the engine works and new requests are accepted. If this fails, send requests elsewhere."""
    problem = raw_request.app.state.duet.life.problem
    if problem is None:
        return JSONResponse({"status": "ok"})
    body = {"status": "unavailable", "reason": problem}
    return JSONResponse(body, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_S)})
