"""CUDA graphs as tapes: a capture records every operator and every launch; a replay runs them on the same tensors.

Python code between them does not run again, as on a GPU. This is what a rehearsal of graphs tests.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

Tape = list[Callable[[], object]]

_python_operators: dict[str, Callable[..., Any]] = {}
_capturing: Tape | None = None


def install() -> None:
    torch.cuda.CUDAGraph = Graph  # type: ignore[assignment,misc]
    torch.cuda.graph = Capture  # type: ignore[assignment,misc]
    torch.cuda.graph_pool_handle = lambda *_: (0, 0)
    torch.cuda.is_current_stream_capturing = lambda: _capturing is not None
    _write_down_launches()


class Graph:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.tape: Tape = []

    def replay(self) -> None:
        with _disable_current_modes(), torch.no_grad():
            for step in self.tape:
                step()

    def reset(self) -> None:
        self.tape = []

    def pool(self) -> tuple[int, int]:
        return 0, 0


class Capture:
    """``with torch.cuda.graph(graph):``."""

    def __init__(self, graph: Graph, *_: Any, **__: Any) -> None:
        self._tape, self._mode = graph.tape, _WritingDown(graph.tape)

    def __enter__(self) -> None:
        global _capturing
        _capturing = self._tape
        self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        global _capturing
        _capturing = None
        self._mode.__exit__(*error)


def launch(kernel: Callable[[], Any]) -> Any:
    """Run a kernel now, and in every replay of a graph that is being captured. Returns its result."""

    def run() -> Any:
        with _disable_current_modes(), torch.no_grad():
            return kernel()

    result = run()
    if _capturing is not None:
        _capturing.append(lambda: _write_over(result, run()))
    return result


def launch_compiled(module: ModuleType) -> None:
    """Record Inductor's compiled code as one launch, because it calls no operators that could be recorded."""
    graph = module.CompiledFxGraph
    run = graph.__call__

    def launched(self: Any, inputs: list[Any]) -> Any:
        held = list(inputs)
        inputs.clear()  # the callee must do this
        return launch(lambda: run(self, list(held)))

    graph.__call__ = launched


def remember_python_operators(module: ModuleType) -> None:
    """Record what vLLM's Python operators call instead of the operators: a replay must not run their Python code."""
    register = module.direct_register_custom_op

    def remembering(op_name: str, op_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        _python_operators[f"vllm::{op_name}"] = op_func
        return register(op_name, op_func, *args, **kwargs)

    module.direct_register_custom_op = remembering  # type: ignore[attr-defined]


class _WritingDown(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, operator._schema.name
        if name in _python_operators:
            with self:
                return _python_operators[name](*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            raise RuntimeError("the host would wait for the device while a graph is captured")
        result = operator(*args, **kwargs)
        if operator.is_view or operator._schema.is_mutable:
            self.tape.append(lambda: operator(*args, **kwargs))
        else:
            self.tape.append(lambda: _write_over(result, operator(*args, **kwargs)))
        return result


def _write_over(captured: Any, replayed: Any) -> None:
    """Write the results into the tensors of the capture."""
    for place, tensor in zip(_tensors(captured), _tensors(replayed), strict=True):
        if place.data_ptr() != tensor.data_ptr():
            place.copy_(tensor)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _write_down_launches() -> None:
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run
    InterpretedFunction.run = lambda *args, **kwargs: launch(lambda: run(*args, **kwargs))  # type: ignore[method-assign]
