"""The playground: a page at ``/`` and its files under ``/playground/``, unchanged from ``static``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

HEADERS = {
    # Allows only the page's own files and the server's own API. The browser itself reads and draws pictures.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # cached, but checked by ETag each time: modules of two releases must not mix
}


class PlaygroundFiles(StaticFiles):
    """Starlette's static files with our headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def attach_playground(app: FastAPI) -> None:
    """Serve the page and its files. OpenAPI does not list them."""
    files = PlaygroundFiles(directory=Path(__file__).parent / "static")

    async def show_page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.add_route("/", show_page, include_in_schema=False)
    app.mount("/playground", files)
