"""``POST /v1/compression/preview``: prefills a chat completion and shows which tokens both stages kept."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import RetryableRequestError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt
from duet_server.api.generation.schema import DuetChatCompletionRequest
from duet_server.api.generation.serving_chat import DuetServingChat
from duet_server.api.inspection.overlay import draw_overlay
from duet_server.api.inspection.patches import NOTHING, Picture, Trace, describe_patches, pictures_of
from duet_server.api.inspection.plan_body import plan_body
from duet_server.plan import ModelShape, any_cut
from duet_server.plan.errors import Words
from duet_server.plan.wire import MAX_TRACE_ID

_running = asyncio.Semaphore(8)  # far fewer than the traces that the engine keeps


@dataclass(frozen=True, slots=True)
class Preview:
    """The result of compressing a chat completion in the engine."""

    prompt: CompressedPrompt
    pictures: list[Picture]
    patches: list[dict[str, Any]]  # one entry per picture
    processor: Any
    shape: ModelShape

    def body(self, handler: DuetServingChat) -> dict[str, Any]:
        """A :class:`duet_server.api.inspection.schema.CompressionPreview` as a dictionary."""
        return plan_body(self.prompt, handler.served) | {"patches": self.patches}

    def png(self) -> bytes:
        """The pictures with their kept patches. Raises RequestRefusedError if there is no picture."""
        if not self.pictures:
            expected = "a picture, or Accept: application/json"
            raise RequestRefusedError("unsupported", "messages", Words("without pictures"), expected)
        return draw_overlay(self.pictures, self.patches, self.processor, self.shape.vision)


async def preview_chat(
    handler: DuetServingChat, request: DuetChatCompletionRequest, raw_request: Request
) -> Preview | ErrorResponse:
    """Let the engine prefill the request without using its caches, and report which tokens it kept.

    Raises:
        RequestRefusedError: if the request itself would be refused, or on a model without compression.
    """
    request.duet.trace_id = trace_id = secrets.randbelow(MAX_TRACE_ID) + 1
    rendered = await handler.render_chat_request(request)
    if isinstance(rendered, ErrorResponse):
        return rendered
    (engine_input,) = rendered[1]
    compressed, shape = request.duet.prompt, handler.served.shape
    if compressed is None or shape is None:
        raise handler.served.refuse_prompt()
    request_id = f"preview-{handler._base_request_id(raw_request)}"
    async with _running:
        trace = await _run(handler.engine_client, engine_input, request_id, request.vllm_xargs, trace_id)
    prompt = RenderedPrompt.from_engine_input(engine_input)
    pictures = pictures_of(engine_input, prompt.items) if prompt.items else []
    is_cut = {picture.image_idx for picture in pictures if any_cut(picture.units)}
    # The request was aborted, or the engine dropped its trace in favor of later ones.
    if is_cut - trace["images"].keys() or (compressed.drops and not trace["segments"]):
        raise RetryableRequestError("The engine dropped this preview. Try again.")
    processor = handler.renderer.get_mm_processor().info.get_hf_processor().image_processor
    patches = describe_patches(pictures, trace, len(prompt.token_ids), shape, processor, handler.served.overview)
    return Preview(compressed, pictures, patches, processor, shape)


async def _run(engine: Any, engine_input: Any, request_id: str, extra_args: Any, trace_id: int) -> Trace:
    """Run one prefill and return the workers' trace of it."""
    params = SamplingParams(
        temperature=0, max_tokens=1, extra_args=extra_args, output_kind=RequestOutputKind.FINAL_ONLY
    )
    # The first engine's workers answer take_trace below, so the prompt must run there.
    rank = 0 if engine.vllm_config.parallel_config.data_parallel_size > 1 else None
    async for _ in engine.generate(engine_input, params, request_id, data_parallel_rank=rank):
        pass
    return (await engine.collective_rpc("take_trace", args=(trace_id,)))[0] or NOTHING
