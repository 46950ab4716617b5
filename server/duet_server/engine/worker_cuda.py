"""vLLM's CUDA worker with DUET's hooks."""

from vllm.v1.worker.gpu_worker import Worker

from duet_server.engine.worker import WorkerMixin


class DuetCUDAWorker(WorkerMixin, Worker):
    """vLLM loads it by name: ``registration.py`` sets ``worker_cls``."""
