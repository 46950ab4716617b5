from __future__ import annotations

from types import SimpleNamespace

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

from duet_server.engine.worker import SPIN_S, WorkerMixin


class VllmWorker:
    vllm_config = SimpleNamespace(use_v2_model_runner=True)

    def init_device(self):
        """There is no device."""


class Worker(WorkerMixin, VllmWorker):
    pass


def test_a_worker_sleeps_soon_after_a_message(monkeypatch):
    monkeypatch.setattr(SpinCondition.__init__, "__defaults__", (1,))  # vLLM's; pytest puts the old value back
    Worker().init_device()
    queue = MessageQueue(1, 1, max_chunk_bytes=1024)
    assert MessageQueue.create_from_handle(queue.export_handle(), 0)._spin_condition.busy_loop_s == SPIN_S < 1
