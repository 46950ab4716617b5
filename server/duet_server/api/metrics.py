"""Prometheus metrics of compression, on vLLM's ``/metrics``.

They are in prometheus_client's default registry, like vLLM's own. If processes share ``PROMETHEUS_MULTIPROC_DIR``, a
scrape of any one of them shows the sum over all. The sum includes the time of both stages, which the engine records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from prometheus_client import Counter, Histogram

from duet_server.api.errors import Reason
from duet_server.stage_metrics import STAGE1_SECONDS, STAGE2_SECONDS

MODALITIES = ("image",)
STAGES = {"encoder": "encoder", "stage1": "stage1", "llm": "layer_average"}  # and their keys in a usage

_VISUAL_TOKENS = Counter(
    "duet_visual_tokens",
    "Visual tokens by modality and stage: after the vision encoder, after stage 1, and averaged over decoder layers.",
    ["model_name", "modality", "stage"],
)
_REQUESTS = Counter("duet_requests", "Accepted chat requests by compression preset.", ["model_name", "preset"])
_REDUCTION = Histogram(
    "duet_reduction_ratio",
    "Share of visual tokens removed from a request with images, averaged over decoder layers.",
    ["model_name"],
    buckets=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 1.0],
)
_SAVED = Counter(
    "duet_kv_token_layers_saved",
    "Token-layers (prompt tokens times decoder layers) that compression saved in the KV cache.",
    ["model_name"],
)
_REJECTED = Counter(
    "duet_rejected_requests",
    "Refused requests by reason, such as invalid settings, a limit or a failed media check.",
    ["model_name", "reason"],
)


class CompressionMetrics:
    """The metrics of one served model. All series exist from the start with value 0, except the counts by preset."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        for modality in MODALITIES:
            for stage in STAGES:
                _VISUAL_TOKENS.labels(model_name, modality, stage)
        self._rejected = {reason: _REJECTED.labels(model_name, reason) for reason in get_args(Reason)}
        self._reduction = _REDUCTION.labels(model_name)
        self._saved = _SAVED.labels(model_name)
        for seconds in (STAGE1_SECONDS, STAGE2_SECONDS):
            seconds.labels(model_name)

    def count_request(self, preset: str) -> None:
        """Count an accepted request, whether it has images or not."""
        _REQUESTS.labels(self._model_name, preset).inc()

    def count_compression(self, usage: Mapping[str, Any]) -> None:
        """Count the savings of an accepted request with images, given its ``usage.compression``."""
        cache = usage["kv_cache"]
        for modality, tokens in usage["by_modality"].items():
            for stage, key in STAGES.items():
                _VISUAL_TOKENS.labels(self._model_name, modality, stage).inc(tokens[key])
        self._reduction.observe(usage["reduction"])
        # Counts of stage 1 may keep a class token and every patch, which is a token more than without compression.
        self._saved.inc(max(0, cache["token_layers_uncompressed"] - cache["token_layers"]))

    def count_rejected(self, reason: Reason) -> None:
        self._rejected[reason].inc()
