"""The models that the benchmarks serve: LLaVA-1.5-7B in shape, and a small one with its shares of tower and decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import LlavaConfig

from duet_server.plan import ModelShape, default_boundaries, llava_shape
from duet_training import random_llava


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """A LLaVA of these sizes, whose weights vLLM makes up."""

    vision: random_llava.Sizes
    text: random_llava.Sizes
    dtype: str

    @property
    def shape(self) -> ModelShape:
        config = LlavaConfig(vision_config=dict(self.vision), text_config=dict(self.text))
        return llava_shape(config, default_boundaries(self.text["num_hidden_layers"]))

    def write_checkpoint(self, directory: Path) -> Path:
        """Write everything but weights into a directory; returns its absolute path, a key of what vLLM compiles."""
        directory.mkdir(parents=True, exist_ok=True)
        return random_llava.write_llava_without_weights(directory.resolve(), self.vision, self.text)


# 1/80 of the larger one's FLOPs. The tower takes 4.6 % of the prefill's, next to 4.2 % there with as many text tokens.
SMALL = BenchmarkModel(
    vision={
        **random_llava.TOWER_SIZES,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 5,  # of which LLaVA runs all but the last
        "num_attention_heads": 4,
        "projection_dim": 256,
    },
    # 78M parameters.
    text={
        **random_llava.DECODER_SIZES,
        "hidden_size": 768,
        "intermediate_size": 1792,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
    dtype="float32",
)
LLAVA_7B = BenchmarkModel(
    vision={
        **random_llava.TOWER_SIZES,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
    },
    text={
        **random_llava.DECODER_SIZES,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,  # the tokenizer has fewer: further ids decode to nothing
        "torch_dtype": "bfloat16",
    },
    dtype="bfloat16",
)
MODELS = {"small": SMALL, "llava-1.5-7b": LLAVA_7B}
MODEL_DIR_HELP = "keep the model here, so that the next run with it finds what vLLM compiled (a new temporary folder)"
