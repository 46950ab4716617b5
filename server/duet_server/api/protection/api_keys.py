"""API keys on every route. vLLM's own check, which stays, covers only /v1, /v2, /inference and /cohere."""

from __future__ import annotations

from argparse import Namespace
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import get_route_path
from starlette.types import Receive, Scope, Send
from vllm import envs
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

HEALTH = ("/health", "/health/live", "/health/ready", "/ping")
# Open, because a browser has no key yet when it loads the page. Nothing here comes from the model or its requests.
PLAYGROUND, PLAYGROUND_FILES = "/", "/playground/"


class ApiKeys(AuthenticationMiddleware):
    """ASGI middleware: answers 401 unless the request carries one of the API keys or its route is open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or is_open(scope) or self.verify_token(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        answer = create_error_response(
            "Authorization is missing or has no valid key, expected Bearer and an API key.",
            "AuthenticationError",
            HTTPStatus.UNAUTHORIZED,
            param="Authorization",
        )
        headers = {"WWW-Authenticate": "Bearer"}
        await JSONResponse(answer.model_dump(), HTTPStatus.UNAUTHORIZED, headers)(scope, receive, send)


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key. The path must match exactly, as the router will see it."""
    path, method = get_route_path(scope), scope.get("method", "")
    if method == "OPTIONS":  # a browser's preflight request carries no key
        return True
    if path in HEALTH:
        return bool(scope["type"] == "http")
    is_playground = path == PLAYGROUND or (path.startswith(PLAYGROUND_FILES) and ".." not in path)
    return is_playground and method in ("GET", "HEAD")


def api_keys(args: Namespace) -> list[str]:
    """The server's keys, from the sources that vLLM reads."""
    return [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
