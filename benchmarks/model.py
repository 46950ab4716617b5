"""The model that the benchmarks serve: LLaVA-1.5 at 1/80 of its FLOPs, with its shares of tower, decoder and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import LlavaConfig

from duet_server import demo
from duet_server.api.model_shape import llava_shape
from duet_server.plan import default_boundaries

# The tower takes 4.6 % of the prefill's FLOPs, next to 4.2 % in LLaVA-1.5-7B with as many text tokens.
VISION: dict[str, Any] = {
    **demo.VISION,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,  # of which LLaVA runs all but the last
    "num_attention_heads": 4,
    "projection_dim": 256,
}
# 78M parameters.
TEXT: dict[str, Any] = {
    **demo.TEXT,
    "hidden_size": 768,
    "intermediate_size": 1792,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
SHAPE = llava_shape(LlavaConfig(vision_config=VISION, text_config=TEXT), default_boundaries(TEXT["num_hidden_layers"]))


def write_checkpoint(directory: Path) -> Path:
    """Write the model with random weights into an existing directory."""
    return demo.write_llava(directory, VISION, TEXT)
