"""What DUET adds to vLLM's workers, whatever their device."""

from typing import Any

from duet_server.engine.runner_v1 import PlansMixin


class WorkerMixin:
    """Gives the runner its hooks, and the API what a request's stages chose."""

    def init_device(self: Any) -> None:
        super().init_device()  # type: ignore[misc]
        # Workers build their V1 runner by name, so its class is exchanged afterwards. The V2 runner needs none of it:
        # it asks the model for its hooks.
        if not self.vllm_config.use_v2_model_runner:
            runner = self.model_runner
            runner.__class__ = type(f"Duet{type(runner).__name__}", (PlansMixin, type(runner)), {})

    def take_trace(self: Any, trace_id: int) -> Any:
        """As :meth:`duet_server.engine.trace.Traces.take`; called through vLLM's ``collective_rpc``."""
        return self.model_runner.model.decoder.traces.take(trace_id)
