"""Changes modules at the moment of their import, because importing them only for the change would be too early."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], Any]


def patch(patches: dict[str, Patch]) -> None:
    """Call each function with the module of its name, right after the module has run."""
    to_come = {name: function for name, function in patches.items() if name not in sys.modules}
    sys.meta_path.insert(0, _Finder(to_come))
    for name in patches.keys() - to_come.keys():
        patches[name](sys.modules[name])


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, patches: dict[str, Patch]) -> None:
        self.patches = patches

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        patch = self.patches.pop(name, None)  # popped first, because the search below calls this again
        if patch is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            raise ModuleNotFoundError(f"{name} is gone, and what was changed in it lies elsewhere now", name=name)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
