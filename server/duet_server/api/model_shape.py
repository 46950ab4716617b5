"""From vLLM's configuration of a served model to the shape that plans need."""

from __future__ import annotations

from typing import Any

from duet_server.plan import ModelShape, llava_shape


def model_shape(vllm_config: Any) -> ModelShape | None:
    """The served model's shape; None for a model without compression.

    The engine's plugin marks the configuration of every model that it serves with compression, and of no other.
    """
    duet = vllm_config.additional_config.get("duet", {})
    if not duet.get("served"):
        return None
    return llava_shape(vllm_config.model_config.hf_config, duet["boundaries"])
