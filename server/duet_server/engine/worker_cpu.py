"""vLLM's CPU worker with the hooks of ``runner_v1``."""

from vllm.v1.worker.cpu_worker import CPUWorker

from duet_server.engine.runner_v1 import adopt_runner


class DuetCPUWorker(CPUWorker):
    def init_device(self) -> None:
        super().init_device()
        adopt_runner(self)
