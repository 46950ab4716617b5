"""The model that the benchmarks serve: LLaVA-1.5 at 1/80 of its FLOPs, with its shares of tower, decoder and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duet_server.demo import VOCAB_SIZE, write_llava
from duet_server.plan import DecoderShape, ModelShape, VisionShape, default_boundaries

# The tower takes 4.6 % of the prefill's FLOPs, next to 4.2 % in LLaVA-1.5-7B with as many text tokens.
VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 5,  # of which LLaVA runs all but the last
    "num_attention_heads": 4,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 256,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# 78M parameters.
TEXT: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 1792,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}
SHAPE = ModelShape(
    decoder=DecoderShape(
        num_layers=TEXT["num_hidden_layers"],
        hidden_size=TEXT["hidden_size"],
        intermediate_size=TEXT["intermediate_size"],
        num_heads=TEXT["num_attention_heads"],
        num_kv_heads=TEXT["num_key_value_heads"],
        head_dim=TEXT["hidden_size"] // TEXT["num_attention_heads"],
        vocab_size=VOCAB_SIZE,
    ),
    vision=VisionShape(
        num_patches=(VISION["image_size"] // VISION["patch_size"]) ** 2,
        has_cls=True,
        num_layers=VISION["num_hidden_layers"] - 1,
        hidden_size=VISION["hidden_size"],
        intermediate_size=VISION["intermediate_size"],
        patch_size=VISION["patch_size"],
        image_size=VISION["image_size"],
    ),
    boundaries=default_boundaries(TEXT["num_hidden_layers"]),
)


def write_checkpoint(directory: Path) -> Path:
    """Write the model with random weights into an existing directory."""
    return write_llava(directory, VISION, TEXT)
