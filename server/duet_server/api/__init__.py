"""The HTTP API: vLLM's OpenAI server plus the ``compression`` field, ``usage.compression``, routes and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_server.api.plugin import DuetEndpoints


def endpoint_plugin() -> DuetEndpoints:
    """Entry point of ``vllm.endpoint_plugins``; vLLM calls it if ``VLLM_PLUGINS`` contains ``duet``."""
    from duet_server.api.plugin import DuetEndpoints

    return DuetEndpoints()
