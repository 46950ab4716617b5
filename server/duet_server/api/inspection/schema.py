"""Responses of ``/v1/compression`` and the routes under it, as pydantic models: what OpenAPI shows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from duet_server.api.generation.schema import CompressionUsage


class SegmentCounts(BaseModel):
    """Token counts of one segment: the decoder layers between two boundaries."""

    layers: tuple[int, int] = Field(description="Decoder layers [start, end).")
    tokens: int = Field(description="Prompt tokens, text included.")
    visual_tokens: int


class Cost(BaseModel):
    """One number with and without compression."""

    compressed: float
    uncompressed: float


class UnitTokens(BaseModel):
    """What the vision tower attends within, and what stage 1 chooses from: an image or a tile."""

    grid: tuple[int, int] = Field(description="Rows and columns of visual tokens that the tower makes.")
    stage1: int = Field(
        description="Rows that stage 1 makes of them, a class token included; all tokens if it leaves the unit whole."
    )


class ItemTokens(BaseModel):
    """What becomes of one image of the prompt."""

    modality: str
    encoder: int = Field(description="Visual tokens without compression.")
    stage1: int = Field(description="Visual tokens that enter the language model.")
    units: list[UnitTokens] = Field(
        description="Its units in the tower's order. An image in tiles may enter with another number of tokens than "
        "they have, because padding is removed and newlines are added."
    )


class CompressionPlan(BaseModel):
    """What a request would cost. Nothing is generated."""

    model: str
    images: int
    items: list[ItemTokens] = Field(description="The images in the prompt's order.")
    prompt_tokens: Cost = Field(description="Prompt tokens that enter the language model.")
    segments: list[SegmentCounts]
    kv_cache_bytes: Cost = Field(description="Keys and values of the prompt in all decoder layers.")
    prefill_flops: Cost = Field(description="FLOPs of matrix products, from pixels to the first token's logits.")
    compression: CompressionUsage | None
    notice: str | None = None


class ContextualToken(BaseModel):
    """A visual token that stage 1 made by merging patches."""

    anchor: int
    patches: list[int] = Field(description="All merged patches, including the anchor.")


class Stage1Patches(BaseModel):
    """The result of stage 1 for one picture."""

    dominant: list[int] = Field(description="Patches that it kept unchanged, in ascending order.")
    contextual: list[ContextualToken]
    scores: list[float] = Field(description="One score per patch. Stage 1 chose the dominant patches by these scores.")


class SegmentPatches(BaseModel):
    """What one segment (the decoder layers between two boundaries) holds of a picture."""

    layers: tuple[int, int] = Field(description="Decoder layers [start, end).")
    cls: bool = Field(description="Whether it holds the vision tower's class token.")
    patches: list[int] = Field(description="Unchanged patches that it holds, in ascending order.")
    contextual: list[int] = Field(description="Indices of the contextual tokens (see stage1) that it holds.")
    scores: list[float] | None = Field(
        description="One score per token that the previous segment held of the picture, in the order class token, "
        "patches, contextual tokens. Stage 2 chose by these scores. null if it dropped nothing here."
    )


class PicturePatches(BaseModel):
    """The kept patches of one picture, or of one tile of it. Patches are numbered row by row."""

    grid: tuple[int, int] = Field(description="Rows and columns of patches.")
    picture: dict[Literal["width", "height"], int] = Field(description="The picture's size in pixels.")
    area: dict[Literal["left", "top", "width", "height"], float] | None = Field(
        description="The part of the picture that the patches cover, in its own pixels; null for a tile, which covers "
        "a part of a resized picture."
    )
    tile: int | None = Field(
        None, description="The tile's number, if the model sees the picture in tiles; one of them shows all of it."
    )
    stage1: Stage1Patches | None = Field(
        description="null if stage 1 is off: every patch enters, except padding that the model removes."
    )
    segments: list[SegmentPatches]


class CompressionPreview(CompressionPlan):
    """The costs of a request, and the patches of its pictures that the engine kept."""

    patches: list[PicturePatches] = Field(description="One entry per picture in the prompt's order, or one per tile.")


class CompressionInfo(BaseModel):
    """The compression that this server offers."""

    model_config = ConfigDict(extra="allow")

    model: str
    supported: bool
    notice: str | None = None
    num_layers: int | None = None
    boundaries: list[int] | None = None
    visual_tokens_per_image: int | None = Field(None, description="null if images differ in size.")
    modalities: dict[str, dict[str, Any]] | None = Field(
        None,
        description="What the model takes: the unit from which stage 1 chooses, whether the quality of compressed "
        "answers is published for this family of models or unproven, and the most visual tokens of one image.",
    )
    default: str | dict[str, Any] | None = None
    presets: dict[str, dict[str, Any]] | None = None
    limits: dict[str, int | float] | None = None
