"""vLLM's CPU worker with DUET's hooks."""

from vllm.v1.worker.cpu_worker import CPUWorker

from duet_server.engine.worker import WorkerMixin


class DuetCPUWorker(WorkerMixin, CPUWorker):
    """vLLM loads it by name: ``registration.py`` sets ``worker_cls``."""
