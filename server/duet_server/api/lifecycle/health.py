"""Health routes for orchestrators: whether the process is alive, and whether it should receive requests."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from duet_server.api.lifecycle.gate import RETRY_AFTER_S

router = APIRouter()


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Liveness: the API process answers, even if its engine does not. If this fails, restart the process."""
    return {"status": "ok"}


@router.get("/health/ready", responses={HTTPStatus.SERVICE_UNAVAILABLE.value: {}})
async def ready() -> dict[str, str]:
    """Readiness: the engine works and new requests are accepted. If this fails, send requests elsewhere."""
    return {"status": "ok"}


def not_ready(reason: str) -> Response:
    """What the middleware of :class:`ServerLife` answers in place of the readiness routes, vLLM's included."""
    body = {"status": "unavailable", "reason": reason}
    return JSONResponse(body, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_S)})
