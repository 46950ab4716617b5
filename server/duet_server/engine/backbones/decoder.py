"""Decoder: where vLLM's decoder layers have what stage 2 needs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Decoder:
    """How vLLM's decoder layers are made.

    Attributes:
        attention: the name of a layer's attention module, whose own ``attn`` holds the KV cache.
        norm: the name of the norm before it.
        positions: ``closed`` if a token's position is its row in the segment; ``kept`` if it keeps the (t, h, w) that
            it has without compression.
    """

    attention: str = "self_attn"
    norm: str = "input_layernorm"
    positions: Literal["closed", "kept"] = "closed"
