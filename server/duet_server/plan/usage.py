"""The ``compression`` object that a response reports in its usage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from duet_server.plan.cost import kv_token_layers, layer_average
from duet_server.plan.items import VisualItem
from duet_server.plan.segments import RequestPlan
from duet_server.plan.settings import CompressionSettings
from duet_server.plan.shape import ModelShape


def compression_usage(
    settings: CompressionSettings,
    shape: ModelShape,
    items: Sequence[VisualItem],
    plan: RequestPlan,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The ``compression`` object of a response's usage.

    All counts are totals over the request's images. ``token_layers`` counts the whole prompt, text included. A request
    without images has a reduction of 0 and no modality.

    Args:
        settings: the request's resolved settings.
        shape: the model.
        items: the request's images and videos.
        plan: the request's plan.
        notes: sentences for people; without any, the object has no ``notes``.
    """
    segments = [segment.num_visual_tokens for segment in plan.segments]
    average = layer_average(segments, shape.segment_layers)
    num_encoded = sum(item.num_tokens for item in items)
    usage = {
        "visual_tokens": {
            "encoder": num_encoded,
            "stage1": plan.layout.num_visual_tokens,
            "segments": segments,
            "layer_average": round(average, 4),
        },
        "by_modality": _by_modality(shape, items, plan),
        "reduction": round(1 - average / num_encoded, 4) if num_encoded else 0.0,
        "kv_cache": {
            "token_layers": kv_token_layers([segment.num_tokens for segment in plan.segments], shape.segment_layers),
            "token_layers_uncompressed": (plan.layout.num_text_tokens + num_encoded) * shape.decoder.num_layers,
        },
        "settings": settings.as_dict(),
    }
    return usage | ({"notes": list(notes)} if notes else {})


def _by_modality(shape: ModelShape, items: Sequence[VisualItem], plan: RequestPlan) -> dict[str, dict[str, float]]:
    """The same totals for each modality.

    Stage 2 ranks a pool as a whole. So its items share in what it keeps, in proportion to what they bring.
    """
    totals: dict[str, Counter[str]] = {}
    for idx, pool in enumerate(plan.layout.pools):
        num_structure = plan.layout.num_structure(pool)
        held = [len(segment.pools[idx]) - num_structure for segment in plan.segments]
        average = layer_average(held, shape.segment_layers)
        for item in items:
            if item.span[0] in pool:
                part = {"items": 1, "encoder": item.num_tokens, "stage1": item.num_entering}
                share = average * item.num_entering / held[0]
                totals.setdefault(item.modality, Counter()).update({**part, "layer_average": share})
    return {
        modality: {**total, "layer_average": round(total["layer_average"], 4)} for modality, total in totals.items()
    }
