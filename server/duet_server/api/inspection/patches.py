"""Translates the engine's trace into patches: which patches of every picture each stage and segment kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from duet_server.plan import ModelShape
from duet_server.plan.wire import TRACE_KEY, TracedPicture

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
        pixels: the vision tower's input, ``[3, height, width]``, normalized.
    """

    image_idx: int
    span: tuple[int, int]
    width: int
    height: int
    pixels: Any


def pictures_of(engine_input: Mapping[str, Any], spans: Sequence[tuple[int, int]]) -> list[Picture]:
    """The pictures of a prompt that was rendered for a trace, in the prompt's order.

    vLLM keeps one copy of a repeated picture, so every span is looked up by its picture's hash.
    """
    hashes = engine_input["mm_hashes"]["image"]
    items = dict(zip(hashes[::-1], engine_input["mm_kwargs"]["image"][::-1], strict=True))
    result = []
    for mm_hash, span in zip(hashes, spans, strict=True):
        traced = TracedPicture(*items[mm_hash][TRACE_KEY].data.tolist())
        pixels = items[mm_hash]["pixel_values"].data
        result.append(Picture(traced.image_idx, span, traced.width, traced.height, pixels))
    return result


def describe_patches(
    pictures: Sequence[Picture], trace: Trace, num_prompt_tokens: int, shape: ModelShape, processor: Any
) -> list[dict[str, Any]]:
    """One :class:`duet_server.api.inspection.schema.PicturePatches` per picture, as a dictionary.

    Args:
        pictures: in the prompt's order.
        trace: the engine's trace of the request.
        num_prompt_tokens: prompt tokens that entered the language model.
        shape: the model's shape.
        processor: the Hugging Face image processor. Its resizing and cropping decide which area the patches cover.
    """
    segments = _segments(trace, num_prompt_tokens, len(shape.boundaries) + 1)
    layers = list(pairwise((0, *shape.boundaries, shape.decoder.num_layers)))
    side = shape.vision.image_size // shape.vision.patch_size
    described = []
    for picture in pictures:
        stage1 = trace["images"].get(picture.image_idx)
        patches = stage1["dominant"] if stage1 else range(shape.vision.num_patches)
        held = [_held(picture.span, rows, patches, has_cls=stage1 is not None) for rows, _ in segments]
        scores = [_scores(picture.span, previous, ranked) for (previous, _), (_, ranked) in pairwise(segments)]
        described.append(
            {
                "grid": [side, side],
                "picture": {"width": picture.width, "height": picture.height},
                "area": covered_area(picture.width, picture.height, processor),
                "stage1": stage1 and _stage1(stage1),
                "segments": [
                    {"layers": list(layer_range), **kept, "scores": ranked}
                    for layer_range, kept, ranked in zip(layers, held, [None, *scores], strict=True)
                ],
            }
        )
    return described


def covered_area(width: int, height: int, processor: Any) -> dict[str, float]:
    """The area that the patches cover, in the picture's own pixels. If the processor pads, it exceeds the picture.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        processor: an image processor like CLIP's, which resizes the picture and then crops the center.
    """
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    shortest = size.get("shortest_edge")
    across = shortest / min(width, height) if shortest else size["width"] / width
    down = shortest / min(width, height) if shortest else size["height"] / height
    is_cropped = processor.do_center_crop and crop
    covered = (crop["width"] / across, crop["height"] / down) if is_cropped else (width, height)
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


def _held(span: tuple[int, int], rows: Sequence[int], patches: Sequence[int], *, has_cls: bool) -> dict[str, Any]:
    """What a segment holds of a picture. Its rows in ``span`` are CLS (if any), patches, then contextual tokens."""
    start, end = span
    places = [row - start - int(has_cls) for row in rows if start <= row < end]
    return {
        "cls": -1 in places,
        "patches": [patches[place] for place in places if 0 <= place < len(patches)],
        "contextual": [place - len(patches) for place in places if place >= len(patches)],
    }


def _scores(span: tuple[int, int], previous: Sequence[int], scores: Mapping[int, float]) -> list[float] | None:
    """Scores in the order of the previous segment's rows: CLS, patches, contextual tokens."""
    picture_scores = [scores[row] for row in previous if span[0] <= row < span[1] and row in scores]
    return picture_scores or None


def _stage1(stage1: Mapping[str, Any]) -> dict[str, Any]:
    contextual = [{"anchor": patches[0], "patches": sorted(patches)} for patches in stage1["contextual"]]
    return {"dominant": stage1["dominant"], "contextual": contextual, "scores": stage1["scores"]}
