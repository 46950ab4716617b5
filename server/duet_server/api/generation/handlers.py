"""Replaces vLLM's handlers with ours."""

from __future__ import annotations

from starlette.datastructures import State

from duet_server.api.generation.rendering import DuetRenderer
from duet_server.api.generation.serving_chat import DuetServingChat, DuetServingChatBatch
from duet_server.api.generation.serving_messages import DuetServingMessages
from duet_server.api.generation.serving_responses import DuetServingResponses
from duet_server.api.generation.typed_marks import keep_typed_marks
from duet_server.api.metrics import CompressionMetrics
from duet_server.api.served_model import ServedModel


def replace_handlers(state: State, served: ServedModel, metrics: CompressionMetrics) -> None:
    """``state`` is the app's state, which already holds vLLM's handlers."""
    keep_typed_marks(state.openai_serving_chat.online_renderer.renderer)
    renderer = DuetRenderer(state.openai_serving_chat, served, metrics)
    state.openai_serving_chat = DuetServingChat(state.openai_serving_chat, renderer)
    state.openai_serving_chat_batch = DuetServingChatBatch(state.openai_serving_chat_batch, renderer)
    state.openai_serving_responses = DuetServingResponses(state.openai_serving_responses, renderer)
    state.anthropic_serving_messages = DuetServingMessages(state.anthropic_serving_messages, renderer)
