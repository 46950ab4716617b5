"""The HTTP side: vLLM's OpenAI server with the ``compression`` field, its usage, routes and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duet_server.api.plugin import DuetEndpoints


def endpoint_plugin() -> DuetEndpoints:
    """Entry point of ``vllm.endpoint_plugins``; vLLM calls it where ``VLLM_PLUGINS`` names ``duet``."""
    from duet_server.api.plugin import DuetEndpoints

    return DuetEndpoints()
