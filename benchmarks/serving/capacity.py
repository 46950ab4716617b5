"""How many requests fit into the same KV memory, computed from the blocks of running engines."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.serving.limits import BlockPool, RequestCost

Pool = tuple[int, int]  # number of blocks, tokens per block


@dataclass(frozen=True, slots=True)
class EqualMemory:
    """The block pools of both servers in equal memory. duet-server has more blocks, each for fewer layers."""

    stock: Pool
    duet: Pool

    def fits(self, cost: RequestCost, off: RequestCost) -> dict[str, int]:
        """Requests that fit: uncompressed on stock vLLM, compressed on duet-server, text of equal cost on stock."""
        num_layers = cost.shape.decoder.num_layers
        stock = BlockPool(*self.stock, num_layers)
        duet = BlockPool(*self.duet, round(num_layers * self.stock[0] / self.duet[0]))
        return {
            "stock": stock.num_requests(off.segment_tokens[:1], (num_layers,), cost.num_output),
            "duet": duet.num_requests(cost.segment_tokens, cost.shape.segment_layers, cost.num_output),
            "text": stock.num_requests((cost.text_prompt_tokens(),), (num_layers,), cost.num_output),
        }
