"""``POST /v1/compression/preview``: a chat completion's first token, and what both stages chose on the way to it."""

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
from duet_server.plan.wire import MAX_TRACE_ID

_running = asyncio.Semaphore(8)  # far fewer than the engine keeps notes of


@dataclass(frozen=True, slots=True)
class Preview:
    """What a chat completion's compression came to in the engine."""

    prompt: CompressedPrompt
    pictures: list[Picture]
    patches: list[dict[str, Any]]  # of each picture
    processor: Any

    def body(self, handler: DuetServingChat) -> dict[str, Any]:
        """As :class:`duet_server.api.generation.schema.CompressionPreview`."""
        return plan_body(self.prompt, handler.served) | {"patches": self.patches}

    def png(self) -> bytes:
        """Raises RequestRefusedError where there is no picture to draw on."""
        if not self.pictures:
            raise RequestRefusedError("unsupported", "messages", "no picture", "one, or Accept: application/json")
        return draw_overlay(self.pictures, self.patches, self.processor)


async def preview_chat(
    handler: DuetServingChat, request: DuetChatCompletionRequest, raw_request: Request
) -> Preview | ErrorResponse:
    """Have the engine prefill the request, whatever it has cached of it, and say what it kept.

    Raises:
        RequestRefusedError: as the request itself would be refused, or on a model without compression.
    """
    request.duet.trace_id = trace_id = secrets.randbelow(MAX_TRACE_ID) + 1
    rendered = await handler.render_chat_request(request)
    if isinstance(rendered, ErrorResponse):
        return rendered
    (engine_input,) = rendered[1]
    compressed, shape = request.duet.prompt, handler.served.shape
    if compressed is None or shape is None:
        raise handler.served.refuse_model()
    request_id = f"preview-{handler._base_request_id(raw_request)}"
    async with _running:
        trace = await _run(handler.engine_client, engine_input, request_id, request.vllm_xargs, trace_id)
    prompt = RenderedPrompt.from_engine_input(engine_input)
    pictures = pictures_of(engine_input, prompt.visual_spans) if prompt.visual_spans else []
    misses_picture = any(picture.image_idx not in trace["images"] for picture in pictures)
    has_stage1 = compressed.settings.dominant is not None
    # It was aborted, or later previews pushed its notes out.
    if (has_stage1 and misses_picture) or (compressed.drops and not trace["segments"]):
        raise RetryableRequestError("The engine has given this preview up. Try again.")
    processor = handler.renderer.get_mm_processor().info.get_hf_processor().image_processor
    patches = describe_patches(pictures, trace, len(prompt.token_ids), shape, processor)
    return Preview(compressed, pictures, patches, processor)


async def _run(engine: Any, engine_input: Any, request_id: str, extra_args: Any, trace_id: int) -> Trace:
    """What the workers noted of one prefill."""
    params = SamplingParams(
        temperature=0, max_tokens=1, extra_args=extra_args, output_kind=RequestOutputKind.FINAL_ONLY
    )
    # A question to the workers is answered by those of the first engine.
    rank = 0 if engine.vllm_config.parallel_config.data_parallel_size > 1 else None
    async for _ in engine.generate(engine_input, params, request_id, data_parallel_rank=rank):
        pass
    return (await engine.collective_rpc("take_trace", args=(trace_id,)))[0] or NOTHING
