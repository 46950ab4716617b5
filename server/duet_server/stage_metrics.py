"""``duet_stage1_seconds`` and ``duet_stage2_seconds``: the time that both stages take inside the engine.

The model's process records them. The API's process also defines them, so that they are in ``/metrics`` from the start.
It shows the recorded values only if both processes share ``PROMETHEUS_MULTIPROC_DIR``; ``duet-server serve`` sets it.
"""

from __future__ import annotations

from prometheus_client import Histogram

BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
STAGE1_SECONDS = Histogram(
    "duet_stage1_seconds",
    "Time that stage 1 took to choose and merge the visual tokens of a step's compressed images.",
    ["model_name"],
    buckets=BUCKETS,
)
STAGE2_SECONDS = Histogram(
    "duet_stage2_seconds",
    "Time that stage 2 took to rank and drop the visual tokens of a step, over all boundaries.",
    ["model_name"],
    buckets=BUCKETS,
)
