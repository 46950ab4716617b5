"""Responses of ``/v1/compression`` and the routes under it, as pydantic models: what OpenAPI shows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from duet_server.api.generation.schema import CompressionUsage


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
