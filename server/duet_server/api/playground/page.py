"""The playground: a page at ``/`` and its files under ``/playground/``, as they lie in ``static``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

HEADERS = {
    # The page's own files and the server's own API; pictures are read and drawn inside the browser.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked for anew by its ETag: modules of two releases must not mix
}


class PlaygroundFiles(StaticFiles):
    """Starlette's, with our headers."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def attach_playground(app: FastAPI) -> None:
    """Serve the page; neither route shows in OpenAPI."""
    files = PlaygroundFiles(directory=Path(__file__).parent / "static")

    async def show_page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.add_route("/", show_page, include_in_schema=False)
    app.mount("/playground", files)
