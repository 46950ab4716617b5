"""The playground in a real browser, through the elements that a visitor sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.serving.running_server import RunningServer, picture_and_text

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CHAT, PREVIEW = "/v1/chat/completions", "/v1/compression/preview"
# The color at the centre of each of a picture's 24 x 24 patches.
_CENTRES = """canvas => {
  const context = canvas.getContext("2d");
  return Array.from({length: 576}, (_, i) => [...context.getImageData(
    (i % 24 + 0.5) * canvas.width / 24, (Math.floor(i / 24) + 0.5) * canvas.height / 24, 1, 1).data].slice(0, 3));
}"""


class Playground:
    """A tab with the page open. ``problems`` are the page's own errors and requests that left the server."""

    def __init__(self, page: Page, base_url: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.traffic: list[tuple[str, str]] = []  # ("sent" | "done" | "failed", path) of the API's requests
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._heard)
        page.on("request", lambda request: self._saw("sent", request.url))
        page.on("requestfinished", lambda request: self._saw("done", request.url))
        page.on("requestfailed", lambda request: self._saw("failed", request.url))
        page.route(lambda url: not url.startswith((base_url, "data:", "blob:")), self._refuse)
        self.base_url = base_url
        page.goto(base_url)
        expect(self.panel("A")).to_be_visible()

    def _heard(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.problems.append(message.text)

    def _saw(self, what: str, url: str) -> None:
        if "/v1/" in url:
            self.traffic.append((what, url.removeprefix(self.base_url)))

    def _refuse(self, route: Any) -> None:
        self.problems.append(f"asked for {route.request.url}")
        route.abort()

    def panel(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=f"Setting {name}")

    def slider(self, name: str) -> Locator:
        return self.panel(name).get_by_role("slider")

    def view(self, name: str) -> Locator:
        return self.panel(name).locator(".view canvas")

    def answer(self, name: str) -> Locator:
        return self.panel(name).get_by_role("group", name="Answer")

    def figure(self, name: str, term: str) -> Locator:
        tile = self.panel(name).locator(".figures div").filter(has_text=term)
        return tile.locator("dd").first

    def status(self) -> Locator:
        return self.page.get_by_role("status")

    def upload(self, picture: Path) -> None:
        self.page.locator("#file").set_input_files(picture)

    def use_sample(self) -> None:
        self.page.get_by_role("button", name="Use a sample picture").click()
        self.wait_for_patches("A")

    def wait_for_patches(self, name: str) -> None:
        expect(self.view(name)).to_be_visible()
        expect(self.panel(name)).to_have_attribute("aria-busy", "false")

    def set_length(self, tokens: int) -> None:
        self.page.get_by_text("API key and answer length").click()
        self.page.get_by_label("Maximum answer length").fill(str(tokens))

    def ask(self) -> None:
        self.page.get_by_role("button", name="Ask").click()

    def chats(self) -> list[str]:
        """The outcomes of the chat completions, once none is in flight."""
        while len(seen := [what for what, path in self.traffic if path == CHAT]) % 2:
            self.page.wait_for_timeout(50)
        return seen

    def patch_colors(self, name: str) -> list[list[int]]:
        colors: list[list[int]] = self.view(name).evaluate(_CENTRES)
        return colors


def kinds_of_patches(colors: list[list[int]], originals: list[list[int]]) -> dict[str, set[int]]:
    """The patches that are drawn unchanged, tinted and dark, classified by their distance from these colors."""
    covers = {"kept": (0.0, (0, 0, 0)), "merged": (0.45, (255, 176, 0)), "dropped": (0.82, (10, 12, 16))}
    kinds: dict[str, set[int]] = {kind: set() for kind in covers}
    for patch, (seen, original) in enumerate(zip(colors, originals, strict=True)):
        distances = {
            kind: max(abs(s - (o * (1 - share) + c * share)) for s, o, c in zip(seen, original, cover, strict=True))
            for kind, (share, cover) in covers.items()
        }
        kind = min(distances, key=lambda kind: distances[kind])
        assert distances[kind] <= 3, f"{patch=} {seen=} {original=}"
        kinds[kind].add(patch)
    return kinds


def request_body(picture: Path, question: str, compression: Any, max_tokens: int = 128) -> dict[str, Any]:
    """The request that the page sends, made from the picture's file."""
    messages = [{"role": "user", "content": picture_and_text(picture, question)}]
    return {"messages": messages, "compression": compression, "max_tokens": max_tokens, "temperature": 0}


def asked(server: RunningServer, path: str, *args: Any) -> dict[str, Any]:
    response = server.client.post(path, json=request_body(*args))
    assert response.status_code == 200, response.text
    return response.json()
