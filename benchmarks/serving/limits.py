"""Upper limits of the gain of a compressed request: fewer FLOPs, fewer KV-cache blocks."""

from __future__ import annotations

from dataclasses import dataclass

from duet_server.plan import CompressionSettings, ModelShape, prefill_flops


@dataclass(frozen=True, slots=True)
class RequestCost:
    """A request with one picture, ``num_text`` text tokens and ``num_output`` generated ones, under one setting."""

    shape: ModelShape
    settings: CompressionSettings
    num_text: int
    num_output: int

    @property
    def segment_tokens(self) -> tuple[int, ...]:
        """Prompt tokens that each segment holds."""
        counts = self.settings.segment_counts(self.shape.num_patches)
        return tuple(visual + self.num_text for visual in counts)

    @property
    def layer_average(self) -> float:
        """Visual tokens, averaged over decoder layers."""
        return self.settings.layer_average(self.shape)

    @property
    def prefill_flops(self) -> float:
        entering = self.settings.num_entering(self.shape.num_patches)
        return prefill_flops(self.shape, self.segment_tokens, [self.shape.num_patches], entering)

    @property
    def request_flops(self) -> float:
        """FLOPs of prefill and decoding. With causal attention, a token costs the same in both."""
        decoded = self.num_output - 1  # the prefill gives the first token
        entering = self.settings.num_entering(self.shape.num_patches)
        grown = [tokens + decoded for tokens in self.segment_tokens]
        head = 2 * decoded * self.shape.decoder.hidden_size * self.shape.decoder.vocab_size
        return prefill_flops(self.shape, grown, [self.shape.num_patches], entering) + head

    def text_prompt_tokens(self) -> int:
        """Length of a prompt without pictures that costs the decoder about the same."""
        return round(self.layer_average) + self.num_text


@dataclass(frozen=True, slots=True)
class BlockPool:
    """A running engine's KV cache: blocks, each for ``block_size`` tokens in ``layers_per_block`` layers."""

    num_blocks: int
    block_size: int
    layers_per_block: int

    def num_requests(self, segment_tokens: tuple[int, ...], segment_layers: tuple[int, ...], num_output: int) -> int:
        """The number of requests of these lengths that fit at the same time, each at its full length."""
        held = [tokens + num_output - 1 for tokens in segment_tokens]  # the last token is never stored
        blocks = sum(
            -(-tokens // self.block_size) * -(-layers // self.layers_per_block)
            for tokens, layers in zip(held, segment_layers, strict=True)
        )
        return (self.num_blocks - 1) // blocks  # vLLM keeps one block for itself
