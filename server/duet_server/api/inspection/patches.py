"""Translates the engine's trace into patches: which patches of every picture each stage and segment kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, NamedTuple

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.prompt import items_of
from duet_server.plan import ModelShape, Unit, VisualItem, any_cut
from duet_server.plan.errors import Words
from duet_server.plan.wire import ROWS_KEY, TRACE_KEY, TracedPicture, field_key

Trace = Mapping[str, Mapping[int, Any]]  # the result of duet_server.engine.trace.Traces.take
NOTHING: Trace = {"images": {}, "segments": {}}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a prompt.

    Attributes:
        image_idx: its index in the engine's trace.
        span: its rows in the prompt.
        width: of the client's picture, in pixels.
        height: of the client's picture, in pixels.
        units: what the tower encodes of it.
        pixels: the vision tower's input for each unit: ``[3, height, width]``, or one row for each patch.
        whole_rows: for each row of the picture if it stays whole, the number of its token; -1 for a row that is none.
            None if these are the units' tokens one after another.
    """

    image_idx: int
    span: tuple[int, int]
    width: int
    height: int
    units: tuple[Unit, ...]
    pixels: Any
    whole_rows: Sequence[int] | None = None


class Token(NamedTuple):
    """A visual token of a unit: CLS, an unchanged patch or a contextual token, in this order. -1 stands for no unit."""

    unit_idx: int
    kind: int
    number: int  # the patch, or the index of the contextual token


KINDS = CLS, PATCH, CONTEXTUAL = range(3)


def pictures_of(engine_input: Mapping[str, Any], visual_items: Sequence[VisualItem]) -> list[Picture]:
    """The pictures of a prompt that was rendered for a trace, in the prompt's order."""
    result = []
    for item, visual_item in zip(items_of(engine_input, "image"), visual_items, strict=True):
        traced = TracedPicture(*item[field_key(TRACE_KEY, "image")].data.tolist())
        (pixels,) = (item[key].data for key in ("pixel_values", "pixel_values_flat") if key in item)
        by_unit = pixels if pixels.ndim == 4 else [pixels]
        rows = item.get(field_key(ROWS_KEY, "image"))
        result.append(
            Picture(
                traced.image_idx,
                visual_item.span,
                traced.width,
                traced.height,
                visual_item.units,
                by_unit,
                rows and rows.data.tolist(),
            )
        )
    return result


def describe_patches(
    pictures: Sequence[Picture],
    trace: Trace,
    num_prompt_tokens: int,
    shape: ModelShape,
    processor: Any,
    overview: int = 0,
) -> list[dict[str, Any]]:
    """One :class:`duet_server.api.inspection.schema.PicturePatches` per unit of each picture, as a dictionary.

    Args:
        pictures: in the prompt's order.
        trace: the engine's trace of the request.
        num_prompt_tokens: prompt tokens that entered the language model.
        shape: the model's shape.
        processor: the Hugging Face image processor. Its resizing and cropping decide which area the patches cover.
        overview: which of a picture's units shows all of it.

    Raises:
        RequestRefusedError: if a picture's rows are not those of its units, and its backbone has no ``whole_rows``.
    """
    segments = _segments(trace, num_prompt_tokens, len(shape.boundaries) + 1)
    layers = list(pairwise((0, *shape.boundaries, shape.decoder.num_layers)))
    described = []
    for picture in pictures:
        stage1 = trace["images"].get(picture.image_idx) or [None] * len(picture.units)
        tokens = _tokens(picture, stage1, has_cls=shape.vision.has_cls)
        if len(tokens) != picture.span[1] - picture.span[0]:
            value = Words("a picture whose rows this model's backbone does not describe")
            raise RequestRefusedError("unsupported", "messages", value, "/v1/compression/plan for this model")
        for unit_idx, unit in enumerate(picture.units):
            held = [_held(picture.span, rows, tokens, unit_idx) for rows, _ in segments]
            scores = [_scores(picture.span, tokens, ranked, unit_idx) for _, ranked in segments]
            is_whole = unit_idx == overview % len(picture.units)
            entry = {
                "grid": [unit.rows, unit.columns],
                "picture": {"width": picture.width, "height": picture.height},
                "area": _area(picture, processor) if is_whole else None,
                "stage1": stage1[unit_idx] and _stage1(stage1[unit_idx]),
                "segments": [
                    {"layers": list(layer_range), **kept, "scores": ranked}
                    for layer_range, kept, ranked in zip(layers, held, scores, strict=True)
                ],
            }
            described.append(entry | ({"tile": unit_idx} if len(picture.units) > 1 else {}))
    return described


def _area(picture: Picture, processor: Any) -> dict[str, float]:
    if len(picture.units) > 1:  # the view of all of a picture in tiles is stretched
        return {"left": 0.0, "top": 0.0, "width": picture.width, "height": picture.height}
    return covered_area(picture.width, picture.height, processor)


def covered_area(width: int, height: int, processor: Any) -> dict[str, float]:
    """The area that the patches cover, in the picture's own pixels. If the processor pads, it exceeds the picture.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        processor: an image processor like CLIP's, which resizes the picture and then crops the center.
    """
    if not getattr(processor, "do_center_crop", False):  # the picture is stretched over the patches
        return {"left": 0.0, "top": 0.0, "width": width, "height": height}
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    shortest = size.get("shortest_edge")
    across = shortest / min(width, height) if shortest else size["width"] / width
    down = shortest / min(width, height) if shortest else size["height"] / height
    covered = (crop["width"] / across, crop["height"] / down)
    return {
        "left": round((width - covered[0]) / 2, 2),
        "top": round((height - covered[1]) / 2, 2),
        "width": round(covered[0], 2),
        "height": round(covered[1], 2),
    }


def _segments(trace: Trace, num_tokens: int, num_segments: int) -> list[tuple[list[int], dict[int, float]]]:
    """For each segment: the prompt's rows that it holds, and the score of every row that stage 2 chose from."""
    segments: list[tuple[list[int], dict[int, float]]] = [(list(range(num_tokens)), {})]
    for segment_idx in range(1, num_segments):
        previous, noted = segments[-1][0], trace["segments"].get(segment_idx)
        if noted is None:  # nothing was dropped here
            segments.append((previous, {}))
            continue
        scores = {previous[first + place]: score for first, pool in noted["scores"] for place, score in enumerate(pool)}
        segments.append((noted["rows"], scores))
    return segments


def _tokens(picture: Picture, stage1: Sequence[Mapping[str, Any] | None], *, has_cls: bool) -> list[Token]:
    """The tokens of a picture that entered the language model, in the order of their rows."""
    units = picture.units
    by_unit = [_unit_tokens(*entry, has_cls=has_cls) for entry in zip(count(), units, stage1, strict=False)]
    if not any_cut(units) and picture.whole_rows is not None:
        tokens = [token for tokens in by_unit for token in tokens]
        return [tokens[number] if number >= 0 else Token(-1, PATCH, -1) for number in picture.whole_rows]
    columns = stage1[0] and stage1[0].get("tile_columns")
    if not columns:
        return [token for tokens in by_unit for token in tokens]
    view, *tiles = by_unit
    cls, patches, contextual = ([t for tokens in tiles for t in tokens if t.kind == kind] for kind in KINDS)

    def place(token: Token) -> tuple[int, int]:
        """Row and column in the whole picture."""
        (tile_row, tile_column), unit = divmod(token.unit_idx - 1, columns), units[token.unit_idx]
        row, column = divmod(token.number, unit.columns)
        return tile_row * unit.rows + row, tile_column * unit.columns + column

    return [*view, *sorted(patches, key=place), *cls, *contextual]


def _unit_tokens(unit_idx: int, unit: Unit, stage1: Mapping[str, Any] | None, *, has_cls: bool) -> list[Token]:
    if stage1 is None:
        return [Token(unit_idx, PATCH, patch) for patch in range(unit.num_tokens)]
    placed = [(patch, Token(unit_idx, PATCH, patch)) for patch in stage1["dominant"]]
    placed += [(patches[0], Token(unit_idx, CONTEXTUAL, idx)) for idx, patches in enumerate(stage1["contextual"])]
    if stage1["in_place"]:
        placed.sort()
    return [*([Token(unit_idx, CLS, 0)] if has_cls else []), *(token for _, token in placed)]


def _held(span: tuple[int, int], rows: Sequence[int], tokens: Sequence[Token], unit_idx: int) -> dict[str, Any]:
    """What a segment holds of a unit, whose picture's rows lie in ``span``."""
    held = [tokens[row - span[0]] for row in rows if span[0] <= row < span[1]]
    held = [token for token in held if token.unit_idx == unit_idx]
    return {
        "cls": any(token.kind == CLS for token in held),
        "patches": [token.number for token in held if token.kind == PATCH],
        "contextual": sorted(token.number for token in held if token.kind == CONTEXTUAL),
    }


def _scores(
    span: tuple[int, int], tokens: Sequence[Token], scores: Mapping[int, float], unit_idx: int
) -> list[float] | None:
    """The scores by which a segment was chosen: of CLS, of patches, of contextual tokens."""
    ranked = sorted((tokens[row - span[0]], score) for row, score in scores.items() if span[0] <= row < span[1])
    return [score for token, score in ranked if token.unit_idx == unit_idx] or None


def _stage1(stage1: Mapping[str, Any]) -> dict[str, Any]:
    contextual = [{"anchor": patches[0], "patches": sorted(patches)} for patches in stage1["contextual"]]
    return {"dominant": stage1["dominant"], "contextual": contextual, "scores": stage1["scores"]}
