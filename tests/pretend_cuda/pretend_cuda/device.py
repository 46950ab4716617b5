"""``torch.cuda`` as on a machine with one H100. Tensors for this device are created on the CPU."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

GIB = 1 << 30
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-00000000-0000-0000-0000-000000000000",
    gcnArchName="",
    major=9,
    minor=0,
    is_integrated=0,
    multi_processor_count=132,
    warp_size=32,
    total_memory=79 * GIB,
    L2_cache_size=50 << 20,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
)
MEMORY = 78 * GIB, H100.total_memory  # free, total


class Event:
    """An event that has passed as soon as it is recorded; its time is the host's."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seconds = 0.0

    def record(self, *_: Any) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return (end.seconds - self.seconds) * 1e3


class Stream:
    """All streams are the same: nothing runs concurrently with the host."""

    cuda_stream = stream_id = device_index = 0
    device = torch.device("cpu")

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    def __hash__(self) -> int:
        return 0

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def synchronize(self) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...


def install() -> None:
    _make_room_for_two_names()
    _answer_for_the_device()
    _keep_tensors_on_the_cpu()


def _make_room_for_two_names() -> None:
    """Let Dynamo list torch's functions now, because it lists them only once and rejects one object with two names."""
    from torch._dynamo import trace_rules

    trace_rules.get_torch_obj_rule_map()


def _answer_for_the_device() -> None:
    stream = Stream()
    shared = {
        "current_stream": stream,
        "device_count": 1,
        "empty_cache": None,
        "is_available": True,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "memory_allocated": 0,
        "memory_reserved": 0,
        "reset_accumulated_memory_stats": None,
        "reset_peak_memory_stats": None,
        "set_stream": None,
        "synchronize": None,
    }
    cuda = {
        "_lazy_init": None,
        "current_device": 0,
        "default_stream": stream,
        "device": contextlib.nullcontext(),
        "get_device_capability": (H100.major, H100.minor),
        "get_device_name": H100.name,
        "get_device_properties": H100,
        "init": None,
        "ipc_collect": None,
        "is_initialized": False,
        "manual_seed": None,
        "manual_seed_all": None,
        "mem_get_info": MEMORY,
        "set_device": None,
        "set_per_process_memory_fraction": None,
        "set_rng_state": None,
        "set_sync_debug_mode": None,
        "stream": contextlib.nullcontext(),
    }
    accelerator = {
        "current_accelerator": torch.device("cuda"),
        "current_device_idx": 0,
        "current_device_index": 0,
        "empty_host_cache": None,
        "get_memory_info": MEMORY,
        "set_device_idx": None,
        "set_device_index": None,
    }
    for module, answers in ((torch.cuda, shared | cuda), (torch.accelerator, shared | accelerator)):
        for name, answer in answers.items():
            setattr(module, name, _giving(answer))
        module.memory_stats = lambda *_, **__: defaultdict(int)  # type: ignore[attr-defined]
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.Event = torch.Event = Event  # type: ignore[assignment,misc]
    torch.cuda.Stream = torch.Stream = Stream  # type: ignore[assignment,misc]
    torch._C._cuda_getCurrentRawStream = _giving(0)


def _giving(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


def _keep_tensors_on_the_cpu() -> None:
    """Enter a mode in every thread, because modes belong to a thread."""
    _OnCPU().__enter__()
    run = threading.Thread.run

    def run_on_the_cpu(self: threading.Thread) -> None:
        with _OnCPU():
            run(self)

    threading.Thread.run = run_on_the_cpu  # type: ignore[method-assign]


class _OnCPU(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        if name in ("cuda", "pin_memory"):
            return args[0]
        if name in ("is_pinned", "record_stream"):
            return True
        kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs["device"] = _cpu_for_cuda(kwargs["device"])
        args = tuple(map(_cpu_for_cuda, args))
        if name == "to" and len(args) > 1 and type(args[1]) is int:  # a device index
            args = args[0], "cpu", *args[2:]
        return function(*args, **kwargs)


def _cpu_for_cuda(value: Any) -> Any:
    is_device = isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"
    return torch.device("cpu") if is_device else value
