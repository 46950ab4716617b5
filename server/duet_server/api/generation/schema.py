"""Pydantic models of requests with the ``compression`` field and of responses with ``usage.compression``.

OpenAPI shows them. Pydantic does not check the field's value. :func:`duet_server.plan.resolve_settings` checks it,
because it knows the served model and can say what would work.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PrivateAttr, SkipValidation
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
    AnthropicMessagesResponse,
    AnthropicUsage,
)
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from duet_server.api.generation.request_compression import RequestCompression


class Compression(BaseModel):
    """Give exactly one of `preset`, `reduction`, `visual_tokens` or explicit counts. Explicit counts are `dominant`
    with `contextual`, or `keep`, or all three. `guide` and `cluster_width` are optional with each of them."""

    model_config = ConfigDict(extra="forbid")

    preset: str | None = Field(None, description="A preset's name. `GET /v1/compression` lists the model's presets.")
    reduction: float | None = Field(
        None, ge=0, le=1, description="Share of the visual tokens to remove, averaged over decoder layers."
    )
    visual_tokens: float | None = Field(
        None, gt=0, description="Budget of visual tokens per image, averaged over decoder layers."
    )
    dominant: float | None = Field(
        None,
        gt=0,
        description="Visual tokens per image that stage 1 keeps unchanged, including the class token if the model has "
        "one. Where images differ in size, also a share of the image's tokens, below 1.",
    )
    contextual: float | None = Field(
        None,
        ge=0,
        description="Visual tokens per image that stage 1 makes by merging patches; or a share, as for `dominant`.",
    )
    keep: list[float] | None = Field(
        None,
        description="For each boundary, the share of the entering visual tokens that the segment behind it holds. "
        "Values are from 0 to 1 and never rise.",
    )
    cluster_width: int | None = Field(
        None,
        ge=1,
        description="Average number of patches per contextual token; null: merge all patches that are not dominant.",
    )
    guide: Literal["all", "salient", "last"] = Field(
        "salient", description="Which text tokens of the prompt rank the visual tokens in stage 2."
    )
    text: Literal["all", "salient", "last"] = Field(
        "salient", description="The old name of `guide`, still accepted.", deprecated=True
    )


def _as_it_is(value: Any) -> Any:
    return value


class CompressibleRequest(BaseModel):
    """Adds the `compression` field and its state to vLLM's request models."""

    prompt_field: ClassVar[str] = "messages"

    compression: Annotated[str | Compression | None, SkipValidation, PlainSerializer(_as_it_is)] = Field(
        None,
        description="How many visual tokens to drop: a preset's name or an object. If missing, the server's default "
        "applies. It has no effect on a request without images.",
        examples=["balanced", {"reduction": 0.889}, {"visual_tokens": 64}],
    )

    _duet: RequestCompression = PrivateAttr(default_factory=RequestCompression)

    @property
    def duet(self) -> RequestCompression:
        """The compression state of this request."""
        return self._duet

    def __copy__(self) -> Self:
        """A copy has a state of its own. vLLM copies a Responses request for each turn of a built-in tool."""
        copied = super().__copy__()
        copied._duet = replace(self._duet)
        return copied

    def share_duet(self, other: CompressibleRequest) -> None:
        """Share the state of ``other``, from which this request was made."""
        self._duet = other._duet


class DuetChatCompletionRequest(CompressibleRequest, ChatCompletionRequest):
    """vLLM's chat completion request with the `compression` field."""


class VisualTokens(BaseModel):
    """Numbers of visual tokens, summed over all images of the request."""

    encoder: int = Field(description="Visual tokens without compression.")
    stage1: int = Field(description="Visual tokens that entered the language model.")
    segments: list[int] = Field(
        description="Visual tokens that each segment (the layers between two boundaries) holds."
    )
    layer_average: float = Field(description="Visual tokens averaged over all decoder layers.")


class ModalityTokens(BaseModel):
    """The same totals for the images, or the videos, of the request. Segments are counted for both together."""

    items: int = Field(description="How many there are.")
    encoder: int
    stage1: int
    layer_average: float


class KVCacheUsage(BaseModel):
    """The prompt's KV cache. A token-layer is one prompt token, text included, in one decoder layer."""

    token_layers: int
    token_layers_uncompressed: int


class ResolvedSettings(BaseModel):
    """The settings that were applied: counts per image, or shares below 1 where images differ in size. A reduction or
    a budget of visual tokens stays one there, because every image gets its own counts."""

    model_config = ConfigDict(extra="allow")

    dominant: float | None
    contextual: float
    cluster_width: int | None
    keep: list[float]
    guide: str
    preset: str


class CompressionUsage(BaseModel):
    """The effect of compression on a request."""

    visual_tokens: VisualTokens
    by_modality: dict[str, ModalityTokens]
    reduction: float = Field(description="Share of visual tokens removed, averaged over decoder layers.")
    kv_cache: KVCacheUsage
    settings: ResolvedSettings
    notes: list[str] | None = Field(
        None, description="Where the request was compressed otherwise than asked, and why; absent without reason."
    )


class DuetUsageInfo(UsageInfo):
    """vLLM's usage with `compression`, which is absent if a request has no images and no `compression` field."""

    compression: CompressionUsage | None = None


class DuetChatCompletionResponse(ChatCompletionResponse):
    """vLLM's chat completion response with `usage.compression`."""

    usage: DuetUsageInfo


def with_compression_field(request: ChatCompletionRequest, **fields: Any) -> DuetChatCompletionRequest:
    """Convert a validated chat completion request. ``compression`` is one of its extra fields or of ``fields``."""
    if isinstance(request, DuetChatCompletionRequest):
        return request
    values = {**vars(request), **(request.model_extra or {}), **fields}
    return DuetChatCompletionRequest.model_construct(request.model_fields_set, **values)


class DuetBatchChatCompletionRequest(CompressibleRequest, BatchChatCompletionRequest):
    """vLLM's batch chat completion request with the `compression` field."""

    def to_chat_completion_request(self, messages: list[Any]) -> DuetChatCompletionRequest:
        """vLLM's conversion of one conversation, with ``compression``. The result is kept for the sum of usage."""
        conversation = with_compression_field(super().to_chat_completion_request(messages))
        self.duet.conversations.append(conversation.duet)
        return conversation


class DuetResponsesRequest(CompressibleRequest, ResponsesRequest):
    """vLLM's Responses request with the `compression` field."""

    prompt_field: ClassVar[str] = "input"


class DuetMessagesRequest(CompressibleRequest, AnthropicMessagesRequest):
    """vLLM's Messages request with the `compression` field."""


class DuetCountTokensRequest(CompressibleRequest, AnthropicCountTokensRequest):
    """vLLM's count-tokens request with the `compression` field."""


class DuetAnthropicUsage(AnthropicUsage):
    """vLLM's Messages usage with `compression`."""

    compression: dict[str, Any] | None = None


class DuetMessagesResponse(AnthropicMessagesResponse):
    """vLLM's Messages response with `usage.compression`."""

    usage: DuetAnthropicUsage | None = None
