"""vLLM's CUDA worker with DUET's hooks."""

from vllm.v1.worker.gpu_worker import Worker

from duet_server.engine.worker import WorkerMixin


class DuetCUDAWorker(WorkerMixin, Worker):
    """Named in vLLM's configuration."""
