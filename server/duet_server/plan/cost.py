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


def prefill_flops(shape: ModelShape, segment_tokens: Sequence[int], num_images: int, entering_per_image: int) -> float:
    """FLOPs from pixels to the first token's logits.

    Counts only matrix products, ``2 * m * n * k`` each: the vision tower (every image in full, since stage 1 cuts after
    it), a two-layer projector on the rows that enter the language model, the decoder with causal attention and a gated
    MLP, and the language model head on one row. The work of choosing tokens in stages 1 and 2 is not counted.

    Args:
        shape: the model.
        segment_tokens: prompt tokens, text included, that each segment holds.
        num_images: images in the prompt (a video counts its frames).
        entering_per_image: visual tokens of one image that pass the projector.
    """
    projected = num_images * entering_per_image
    layers = zip(segment_tokens, shape.segment_layers, strict=True)
    return float(
        num_images * _tower_flops(shape.vision)
        + _matmul(projected, shape.vision.hidden_size, shape.decoder.hidden_size)
        + _matmul(projected, shape.decoder.hidden_size, shape.decoder.hidden_size)
        + sum(num_layers * _decoder_layer_flops(shape.decoder, tokens) for tokens, num_layers in layers)
        + _matmul(1, shape.decoder.hidden_size, shape.decoder.vocab_size)
    )


def _matmul(m: int, n: int, k: int) -> int:
    return 2 * m * n * k


def _tower_flops(vision: VisionShape) -> int:
    """One image: patch embedding, then layers of bidirectional attention and a two-layer MLP."""
    rows, hidden = vision.num_tokens, vision.hidden_size
    projections = 4 * _matmul(rows, hidden, hidden)
    attention = 2 * _matmul(rows, rows, hidden)
    mlp = 2 * _matmul(rows, hidden, vision.intermediate_size)
    embedding = _matmul(vision.num_patches, 3 * vision.patch_size**2, hidden)
    return embedding + vision.num_layers * (projections + attention + mlp)


def _decoder_layer_flops(decoder: DecoderShape, num_tokens: int) -> int:
    """One decoder layer. Row i attends to i + 1 keys, so scores and values take ``n * (n + 1) / 2`` products each."""
    query_size = decoder.num_heads * decoder.head_dim
    kv_size = decoder.num_kv_heads * decoder.head_dim
    projections = _matmul(num_tokens, decoder.hidden_size, 2 * query_size + 2 * kv_size)
    attention = 2 * query_size * num_tokens * (num_tokens + 1)
    mlp = 3 * _matmul(num_tokens, decoder.hidden_size, decoder.intermediate_size)
    return projections + attention + mlp
