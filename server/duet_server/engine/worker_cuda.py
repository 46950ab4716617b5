"""vLLM's CUDA worker with the hooks of ``runner_v1``."""

from vllm.v1.worker.gpu_worker import Worker

from duet_server.engine.runner_v1 import adopt_runner


class DuetCUDAWorker(Worker):
    def init_device(self) -> None:
        super().init_device()
        adopt_runner(self)
