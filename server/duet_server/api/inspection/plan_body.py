"""The response of ``POST /v1/compression/plan``: the costs of a request with and without compression."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from duet_server.api.generation.prompt import CompressedPrompt
from duet_server.api.served_model import ServedModel
from duet_server.plan import ModelShape, VisualItem, kv_bytes, prefill_flops


def plan_body(prompt: CompressedPrompt, served: ServedModel) -> dict[str, Any]:
    """A :class:`duet_server.api.inspection.schema.CompressionPlan` as a dictionary."""
    shape = served.shape
    assert shape is not None, f"{served=}"
    usage = prompt.usage(shape)
    layout = prompt.plan.layout
    num_encoded = usage["visual_tokens"]["encoder"]
    num_uncompressed = layout.num_text_tokens + num_encoded
    tokens = [segment.num_tokens for segment in prompt.plan.segments]
    units = [unit.num_tokens for item in prompt.items for unit in item.units]
    cache = usage["kv_cache"]
    body: dict[str, Any] = {
        "model": served.name,
        "images": len(prompt.items),
        "items": [_item(item) for item in prompt.items],
        "prompt_tokens": _cost(layout.num_tokens, num_uncompressed),
        "segments": _segments(prompt, shape),
        "kv_cache_bytes": _cost(
            kv_bytes(shape, cache["token_layers"], served.kv_dtype_bytes),
            kv_bytes(shape, cache["token_layers_uncompressed"], served.kv_dtype_bytes),
        ),
        "prefill_flops": _cost(
            prefill_flops(shape, tokens, units, layout.num_visual_tokens),
            prefill_flops(shape, [num_uncompressed] * len(tokens), units, num_encoded),
        ),
        "compression": usage,
    }
    return body | ({"notice": served.notice} if served.notice else {})


def _item(item: VisualItem) -> dict[str, Any]:
    units = [{"grid": [unit.rows, unit.columns], "stage1": unit.num_entering} for unit in item.units]
    return {"modality": item.modality, "encoder": item.num_tokens, "stage1": item.num_entering, "units": units}


def _segments(prompt: CompressedPrompt, shape: ModelShape) -> list[dict[str, Any]]:
    layers = pairwise((0, *shape.boundaries, shape.decoder.num_layers))
    return [
        {"layers": [start, end], "tokens": segment.num_tokens, "visual_tokens": segment.num_visual_tokens}
        for (start, end), segment in zip(layers, prompt.plan.segments, strict=True)
    ]


def _cost(compressed: float, uncompressed: float) -> dict[str, float]:
    return {"compressed": compressed, "uncompressed": uncompressed}
