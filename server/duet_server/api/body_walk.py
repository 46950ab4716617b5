"""Walks a request's decoded JSON body, and names its places as clients write them: ``messages[0].content[1].text``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.types import Scope

# vLLM passes these to the engine unchecked. They occur at any depth, because batches and prompts nest bodies.
ENGINE_FIELDS = ("vllm_xargs", "mm_processor_kwargs", "extra_args")
_BODY = "duet_body"  # in the scope's state
_DEEPEST_NAME = 5
_SOURCES = ("url", "image_url", "video_url", "audio_url", "image_embeds")  # keys that hold a medium's URL or content
_CONTAINERS = (dict, list)  # the types that json creates

Container = dict[str, Any] | list[Any]


class Place:
    """A place in a body: a key or an index, and the place above. A linked list, since a deep body has many places."""

    __slots__ = ("above", "in_engine_field", "key", "names")

    def __init__(self, above: Place | None = None, key: str | int = "") -> None:
        self.above = above
        self.key = key
        # The keys without the indices, as far as any check looks.
        self.names: tuple[str, ...] = above.names if above else ()
        if isinstance(key, str) and above and len(self.names) < _DEEPEST_NAME:
            self.names = (*self.names, key)
        self.in_engine_field: bool = key in ENGINE_FIELDS or (above is not None and above.in_engine_field)

    def __truediv__(self, key: str | int) -> Place:
        return Place(self, key)

    def __str__(self) -> str:
        return path_of(self.keys)

    @property
    def keys(self) -> list[str | int]:
        """All keys and indices, from the body's own on."""
        keys, place = [], self
        while place.above is not None:
            keys.append(place.key)
            place = place.above
        return keys[::-1]


def walk(body: object) -> Iterator[tuple[Place, Container]]:
    """Yield every object and list of a body with its place. Without recursion, so at any depth."""
    pending: deque[tuple[Place, Container]] = deque([(Place(), body)] if isinstance(body, dict | list) else ())
    while pending:
        place, container = pending.popleft()
        yield place, container
        for key, item in items_of(container):
            if item and type(item) in _CONTAINERS:
                pending.append((Place(place, key), item))


def items_of(container: Container) -> Iterable[tuple[str | int, Any]]:
    """The keys of an object, or the indices of a list, with their values."""
    return container.items() if isinstance(container, dict) else enumerate(container)


def texts_in(body: object) -> Iterator[tuple[Place, str | int, str]]:
    """Yield every text of a body, with the place of its object or list, and its key there."""
    for place, container in walk(body):
        for key, item in items_of(container):
            if isinstance(item, str):
                yield place, key, item


def find_text(body: object, text: str) -> Place | None:
    """The first place that holds the source of a medium, or its end: Anthropic's pictures are the end of a data URL."""
    for place, key, found in texts_in(body):
        if (key in _SOURCES and found == text) or (key == "data" and found and text.endswith(found)):
            return place / key
    return None


def remember_body(scope: Scope, body: object) -> None:
    """Keep a request's decoded body, so that an error can name its fields."""
    scope.setdefault("state", {})[_BODY] = body


def remembered_body(scope: Scope) -> Any:
    """The request's decoded body; None if it was not decoded."""
    return scope.get("state", {}).get(_BODY)


def path_of(keys: list[str | int]) -> str:
    """Keys and indices as a client would write them."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    return path.encode(errors="backslashreplace").decode()  # half a surrogate pair could not be sent
