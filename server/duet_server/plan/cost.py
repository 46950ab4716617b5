"""The cost of a plan: layer averages, token-layers, KV bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from duet_server.plan.shape import DecoderShape, ModelShape, VisionShape


def kv_token_layers(segment_tokens: Sequence[int], segment_layers: Sequence[int]) -> int:
    """Entries of the KV cache: one for each token in each decoder layer that holds it."""
    return sum(tokens * layers for tokens, layers in zip(segment_tokens, segment_layers, strict=True))


def layer_average(segment_visual_tokens: Sequence[int], segment_layers: Sequence[int]) -> float:
    """Visual tokens averaged over all decoder layers."""
    return kv_token_layers(segment_visual_tokens, segment_layers) / sum(segment_layers)


def kv_bytes(shape: ModelShape, token_layers: int, dtype_bytes: int) -> int:
    """Bytes of the keys and values of ``token_layers`` token-layers; partly filled blocks are not rounded up."""
    return 2 * shape.decoder.num_kv_heads * shape.decoder.head_dim * token_layers * dtype_bytes


def prefill_flops(shape: ModelShape, segment_tokens: Sequence[int], units: Sequence[int], num_entering: int) -> float:
    """FLOPs from pixels to the first token's logits.

    Counts only matrix products, ``2 * m * n * k`` each: the vision tower (every image in full, since stage 1 cuts after
    it), the layers behind it, the decoder with causal attention and a gated MLP, and the language model head on one
    row. The work of choosing tokens in stages 1 and 2 is not counted.

    Args:
        shape: the model.
        segment_tokens: prompt tokens, text included, that each segment holds.
        units: the visual tokens of each unit (image, tile or frame) that the tower makes.
        num_entering: visual tokens of the prompt that enter the language model.
    """
    vision, decoder = shape.vision, shape.decoder
    num_projected = sum(units) if vision.projects_all else num_entering
    projector = vision.projector or ((vision.hidden_size, decoder.hidden_size), (decoder.hidden_size,) * 2)
    layers = zip(segment_tokens, shape.segment_layers, strict=True)
    return float(
        sum(_tower_flops(vision, num_tokens) for num_tokens in units)
        + sum(_matmul(num_projected, *layer) for layer in projector)
        + sum(num_layers * _decoder_layer_flops(decoder, tokens) for tokens, num_layers in layers)
        + _matmul(1, decoder.hidden_size, decoder.vocab_size)
    )


def _matmul(m: int, n: int, k: int) -> int:
    return 2 * m * n * k


def _tower_flops(vision: VisionShape, num_tokens: int) -> int:
    """One unit: patch embedding, then layers of bidirectional attention and an MLP."""
    hidden, num_patches = vision.hidden_size, num_tokens * vision.patches_per_token
    rows = num_patches + int(vision.has_cls)
    projections = 4 * _matmul(rows, hidden, hidden)
    mlp = (3 if vision.is_gated else 2) * _matmul(rows, hidden, vision.intermediate_size)
    num_global = vision.num_layers if vision.num_global_layers is None else vision.num_global_layers
    num_keys = num_global * rows + (vision.num_layers - num_global) * min(rows, vision.patches_per_window)
    attention = 2 * _matmul(rows, num_keys, hidden)  # of all layers
    embedding = _matmul(num_patches, 3 * vision.frames_per_patch * vision.patch_size**2, hidden)
    return embedding + vision.num_layers * (projections + mlp) + attention


def _decoder_layer_flops(decoder: DecoderShape, num_tokens: int) -> int:
    """One decoder layer. Row i attends to i + 1 keys, so scores and values take ``n * (n + 1) / 2`` products each."""
    query_size = decoder.num_heads * decoder.head_dim
    kv_size = decoder.num_kv_heads * decoder.head_dim
    projections = _matmul(num_tokens, decoder.hidden_size, 2 * query_size + 2 * kv_size)
    attention = 2 * query_size * num_tokens * (num_tokens + 1)
    mlp = 3 * _matmul(num_tokens, decoder.hidden_size, decoder.intermediate_size)
    return projections + attention + mlp
