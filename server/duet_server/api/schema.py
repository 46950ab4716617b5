"""The ``compression`` field and what a response says of it, as pydantic models: what OpenAPI shows.

The field's values are checked in one place, :func:`duet_server.plan.resolve_settings`, which knows the served model and
so can say what it would accept; pydantic hands them on as the JSON that they are.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PrivateAttr, SkipValidation
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import UsageInfo

from duet_server.api.prompt import CompressedPrompt


class Compression(BaseModel):
    """Exactly one of `preset`, `reduction`, `visual_tokens` or explicit counts (`dominant` with `contextual`, `keep`,
    or all three); `text` and `cluster_width` go with any."""

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
    text: Literal["all", "salient", "last"] = Field(
        "salient", description="Which of the prompt's tokens rank the visual ones in stage 2."
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

    _compressed: CompressedPrompt | None = PrivateAttr(default=None)
    """What compression came to, once the prompt is rendered; None on a model without compression."""

    _room: int | None = PrivateAttr(default=None)
    """Tokens that fit one engine step beside the prompt, if its prefill may not be split."""

    _dry_run: bool = PrivateAttr(default=False)
    """Whether nothing of it will reach the engine."""

    _trace_id: int = PrivateAttr(default=0)
    """What the engine notes its choices under; 0 where nobody wants to see them."""

    def to_sampling_params(self, max_tokens: int, *args: Any) -> Any:
        """vLLM's, with an answer no longer than there is room for."""
        if self._room is not None:
            max_tokens = min(max_tokens, self._room)
        return super().to_sampling_params(max_tokens, *args)  # type: ignore[misc]


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
    text: str
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


class SegmentCounts(BaseModel):
    """The prompt between two boundaries."""

    layers: tuple[int, int] = Field(description="Decoder layers [start, end).")
    tokens: int = Field(description="Prompt tokens, text included.")
    visual_tokens: int


class Cost(BaseModel):
    """One number with compression and without."""

    compressed: float
    uncompressed: float


class CompressionPlan(BaseModel):
    """What a request would come to, without generating."""

    model: str
    images: int
    prompt_tokens: Cost = Field(description="Prompt tokens that enter the language model.")
    segments: list[SegmentCounts]
    kv_cache_bytes: Cost = Field(description="Keys and values of the prompt in all decoder layers.")
    prefill_flops: Cost = Field(description="From pixels to the first token's logits, matrix products only.")
    compression: CompressionUsage | None
    notice: str | None = None


class ContextualToken(BaseModel):
    """A visual token that stage 1 made by merging."""

    anchor: int
    patches: list[int] = Field(description="All that it is made of, the anchor included.")


class Stage1Patches(BaseModel):
    """What stage 1 made of a picture."""

    dominant: list[int] = Field(description="Patches that it kept as they are, ascending.")
    contextual: list[ContextualToken]
    scores: list[float] = Field(description="Of every patch, by which the dominant ones were chosen.")


class SegmentPatches(BaseModel):
    """What the decoder layers between two boundaries hold of a picture."""

    layers: tuple[int, int] = Field(description="Decoder layers [start, end).")
    cls: bool = Field(description="Whether they hold the vision tower's class token.")
    patches: list[int] = Field(description="Patches held as they are, ascending.")
    contextual: list[int] = Field(description="Which of stage 1's contextual tokens they hold.")
    scores: list[float] | None = Field(
        description="Of everything that the segment before held of the picture (class token, patches, contextual "
        "tokens), by which stage 2 chose; null where it had no choice."
    )


class PicturePatches(BaseModel):
    """Which patches of one picture were kept; they are numbered row by row."""

    grid: tuple[int, int] = Field(description="Rows and columns of patches.")
    picture: dict[Literal["width", "height"], int] = Field(description="Its size in pixels.")
    area: dict[Literal["left", "top", "width", "height"], float] = Field(
        description="The part of the picture, in its own pixels, that the patches cover."
    )
    stage1: Stage1Patches | None = Field(description="null where stage 1 is off and every patch entered.")
    segments: list[SegmentPatches]


class CompressionPreview(CompressionPlan):
    """What a request comes to, and which patches of its pictures the engine kept."""

    patches: list[PicturePatches] = Field(description="One entry per picture, in the prompt's order.")


class CompressionInfo(BaseModel):
    """What this server offers."""

    model_config = ConfigDict(extra="allow")

    model: str
    supported: bool
    notice: str | None = None
    num_layers: int | None = None
    boundaries: list[int] | None = None
    visual_tokens_per_image: int | None = None
    default: str | dict[str, Any] | None = None
    presets: dict[str, dict[str, Any]] | None = None
    limits: dict[str, int | float] | None = None
