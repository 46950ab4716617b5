"""DUET's additions to vLLM's workers, the same for every device."""

from typing import Any

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

from duet_server.engine.runner_v1 import PlansMixin

# For how long after a message a worker process spins for the next one, and so what a health check costs. vLLM's 1 s
# keeps an idle worker busy. Between shorter steps it still spins; after longer ones, to wake up costs next to nothing.
SPIN_S = 0.1


class WorkerMixin:
    """Adds the hooks to the model runner, and hands traces to the API."""

    def init_device(self: Any) -> None:
        super().init_device()  # type: ignore[misc]
        # The worker's process opens its queue after this.
        SpinCondition.__init__.__defaults__ = (SPIN_S,)  # of busy_loop_s
        # vLLM's worker names the class of its V1 runner in its code, so the class is replaced afterwards. The V2 runner
        # gets its hooks from the model instead.
        if not self.vllm_config.use_v2_model_runner:
            runner = self.model_runner
            runner.__class__ = type(f"Duet{type(runner).__name__}", (PlansMixin, type(runner)), {})

    def take_trace(self: Any, trace_id: int) -> Any:
        """The result of :meth:`duet_server.engine.trace.Traces.take`; called through vLLM's ``collective_rpc``."""
        return self.model_runner.model.decoder.traces.take(trace_id)
