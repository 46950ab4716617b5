"""The ``compression`` object that a response reports in its usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duet_server.plan.cost import kv_token_layers, layer_average
from duet_server.plan.segments import RequestPlan
from duet_server.plan.settings import CompressionSettings
from duet_server.plan.shape import ModelShape


def compression_usage(
    settings: CompressionSettings,
    shape: ModelShape,
    num_encoded: int,
    plan: RequestPlan,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The ``compression`` object of a response's usage.

    All counts are totals over the request's images. ``token_layers`` counts the whole prompt, text included. A request
    without images has a reduction of 0.

    Args:
        settings: the request's resolved settings.
        shape: the model.
        num_encoded: visual tokens that the language model would get without compression.
        plan: the request's plan.
        notes: sentences for people; without any, the object has no ``notes``.
    """
    segments = [segment.num_visual_tokens for segment in plan.segments]
    average = layer_average(segments, shape.segment_layers)
    usage = {
        "visual_tokens": {
            "encoder": num_encoded,
            "stage1": plan.layout.num_visual_tokens,
            "segments": segments,
            "layer_average": round(average, 4),
        },
        "reduction": round(1 - average / num_encoded, 4) if num_encoded else 0.0,
        "kv_cache": {
            "token_layers": kv_token_layers([segment.num_tokens for segment in plan.segments], shape.segment_layers),
            "token_layers_uncompressed": (plan.layout.num_text_tokens + num_encoded) * shape.decoder.num_layers,
        },
        "settings": settings.as_dict(),
    }
    return usage | ({"notes": list(notes)} if notes else {})
