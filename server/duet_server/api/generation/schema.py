"""Requests with the ``compression`` field and responses with ``usage.compression``, as pydantic models.

They are what OpenAPI shows. Pydantic passes the field's value on unchecked: :func:`duet_server.plan.resolve_settings`
checks it, because it knows the served model and can say what would work.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

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
    """Exactly one of `preset`, `reduction`, `visual_tokens` or explicit counts (`dominant` with `contextual`, `keep`,
    or all three); `guide` and `cluster_width` go with any."""

    model_config = ConfigDict(extra="forbid")

    preset: str | None = Field(None, description="A preset's name; `GET /v1/compression` lists those of the model.")
    reduction: float | None = Field(
        None, ge=0, le=1, description="Share of the visual tokens to remove, averaged over decoder layers."
    )
    visual_tokens: float | None = Field(
        None, gt=0, description="The same as a budget: visual tokens per image, averaged over decoder layers."
    )
    dominant: int | None = Field(
        None, ge=1, description="Visual tokens per image that stage 1 keeps as they are, the class token included."
    )
    contextual: int | None = Field(None, ge=0, description="Visual tokens per image that stage 1 makes by merging.")
    keep: list[float] | None = Field(
        None,
        description="For each boundary, the share of the entering visual tokens that the layers behind it hold; "
        "from 1 to 0, never rising.",
    )
    cluster_width: int | None = Field(
        None, ge=1, description="Patches to a merged token, on average; null: every patch that is left joins one."
    )
    guide: Literal["all", "salient", "last"] = Field(
        "salient", description="Which of the prompt's text tokens rank the visual ones in stage 2."
    )
    text: Literal["all", "salient", "last"] = Field(
        "salient", description="The old name of `guide`, still accepted.", deprecated=True
    )


def _as_it_is(value: Any) -> Any:
    return value


class CompressibleRequest(BaseModel):
    """What the requests of every route that compresses add to vLLM's."""

    prompt_field: ClassVar[str] = "messages"

    compression: Annotated[str | Compression | None, SkipValidation, PlainSerializer(_as_it_is)] = Field(
        None,
        description="How many visual tokens to drop: a preset's name or an object. Without it, the server's default. "
        "On a request without images it does nothing.",
        examples=["balanced", {"reduction": 0.889}, {"visual_tokens": 64}],
    )

    _duet: RequestCompression = PrivateAttr(default_factory=RequestCompression)

    @property
    def duet(self) -> RequestCompression:
        """What compression does to this request."""
        return self._duet

    def share_duet(self, other: CompressibleRequest) -> None:
        """Have the state of ``other``, which this request was made of."""
        self._duet = other._duet

    def to_sampling_params(self, max_tokens: int, *args: Any) -> Any:
        """vLLM's, with an answer no longer than there is room for."""
        return super().to_sampling_params(self.duet.limit_answer(max_tokens), *args)  # type: ignore[misc]


class DuetChatCompletionRequest(CompressibleRequest, ChatCompletionRequest):
    """vLLM's chat completion request with the `compression` field."""


class VisualTokens(BaseModel):
    """Visual tokens, all images of the request together."""

    encoder: int = Field(description="Patches that the vision encoder gave.")
    stage1: int = Field(description="Those that entered the language model.")
    segments: list[int] = Field(description="Those held between the decoder's boundaries, first segment first.")
    layer_average: float = Field(description="Their average over all decoder layers.")


class KVCacheUsage(BaseModel):
    """Entries of the KV cache: the prompt's tokens, text included, in each decoder layer that holds them."""

    token_layers: int
    token_layers_uncompressed: int


class ResolvedSettings(BaseModel):
    """The settings as they were applied, in counts per image."""

    dominant: int | None
    contextual: int
    cluster_width: int | None
    keep: list[float]
    guide: str
    preset: str


class CompressionUsage(BaseModel):
    """What compression came to on a request."""

    visual_tokens: VisualTokens
    reduction: float = Field(description="Share of visual tokens removed, averaged over decoder layers.")
    kv_cache: KVCacheUsage
    settings: ResolvedSettings


class DuetUsageInfo(UsageInfo):
    """vLLM's usage with what compression came to; absent on a request without images that asks for none."""

    compression: CompressionUsage | None = None


class DuetChatCompletionResponse(ChatCompletionResponse):
    """vLLM's chat completion response with `usage.compression`."""

    usage: DuetUsageInfo


def with_compression_field(request: ChatCompletionRequest, **fields: Any) -> DuetChatCompletionRequest:
    """A chat completion that vLLM has validated: ``compression`` is an extra field of it, or one of ``fields``."""
    if isinstance(request, DuetChatCompletionRequest):
        return request
    values = {**vars(request), **(request.model_extra or {}), **fields}
    return DuetChatCompletionRequest.model_construct(request.model_fields_set, **values)


class DuetBatchChatCompletionRequest(CompressibleRequest, BatchChatCompletionRequest):
    """vLLM's request of several conversations with the `compression` field."""

    def to_chat_completion_request(self, messages: list[Any]) -> DuetChatCompletionRequest:
        conversation = with_compression_field(super().to_chat_completion_request(messages))
        self.duet.conversations.append(conversation)
        return conversation


class DuetResponsesRequest(CompressibleRequest, ResponsesRequest):
    """vLLM's Responses request with the `compression` field."""

    prompt_field: ClassVar[str] = "input"


class DuetMessagesRequest(CompressibleRequest, AnthropicMessagesRequest):
    """vLLM's Messages request with the `compression` field."""


class DuetCountTokensRequest(CompressibleRequest, AnthropicCountTokensRequest):
    """vLLM's request to count a prompt's tokens with the `compression` field."""


class DuetAnthropicUsage(AnthropicUsage):
    compression: dict[str, Any] | None = None


class DuetMessagesResponse(AnthropicMessagesResponse):
    """vLLM's Messages response with `usage.compression`."""

    usage: DuetAnthropicUsage | None = None
