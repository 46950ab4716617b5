"""Walks a request's decoded JSON body, and names its places as clients write them: ``messages[0].content[1].text``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from starlette.types import Scope

# vLLM passes these to the engine unchecked. They occur at any depth, because batches and prompts nest bodies.
ENGINE_FIELDS = ("vllm_xargs", "mm_processor_kwargs", "extra_args")
_BODY = "duet_body"  # in the scope's state
_CONTAINERS = (dict, list)  # the types that json creates

Container = dict[str, Any] | list[Any]


class Place:
    """A place in a body: a key or an index, and the place above. A linked list, since a deep body has many places."""

    __slots__ = ("above", "depth", "in_engine_field", "key")

    def __init__(self, above: Place | None = None, key: str | int = "") -> None:
        self.above = above
        self.key = key
        self.depth: int = above.depth + 1 if above else 0
        self.in_engine_field: bool = key in ENGINE_FIELDS or (above is not None and above.in_engine_field)

    def __truediv__(self, key: str | int) -> Place:
        return Place(self, key)

    def __str__(self) -> str:
        return path_of(self.keys)

    @property
    def names(self) -> list[str]:
        """The keys without the indices."""
        return [key for key in self.keys if isinstance(key, str)]

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
    pending: list[tuple[Place, Any]] = [(Place(), body)]
    while pending:
        place, value = pending.pop()
        if type(value) in _CONTAINERS:
            yield place, value
            below = [(key, item) for key, item in items_of(value) if item and type(item) in _CONTAINERS]
            pending += [(Place(place, key), item) for key, item in reversed(below)]


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
    """The first place that holds a text, or the end of it: Anthropic's pictures are the end of a data URL."""
    return next((place / key for place, key, found in texts_in(body) if found and text.endswith(found)), None)


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
