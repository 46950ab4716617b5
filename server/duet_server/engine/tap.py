"""The tap: what passes through the vision tower's last global attention, for stage 1 to score patches by."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from duet_kernels import cls_score, received_score
from duet_server.engine.ranks import mean_over_ranks
from duet_server.engine.vllm_internals import get_tensor_model_parallel_world_size


class Tap(nn.Module):
    """Takes the place of an attention module, and notes the queries and keys that pass while it is open.

    It registers no weights, and it lets towers read the module's attributes. Closed, it changes nothing.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.is_open = False
        self.query: Any = None
        self.key: Any = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("attention"), name)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.is_open:
            self.query, self.key = query, key
        return self.attention(query, key, value, *args, **kwargs)

    def run(self, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``encode`` with the tap open."""
        self.is_open = True
        try:
            return encode(*args, **kwargs)
        finally:
            self.is_open = False

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys ``[batch, rows, heads, head_dim]`` of the last run; this rank's heads only."""
        query, key = (
            seen if seen.ndim == 4 else seen.unflatten(-1, (-1, self.attention.head_size))
            for seen in (self.query, self.key)
        )
        self.query = self.key = None
        return query, key


def class_attention(tap: Tap) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage 1's score and metric for a tower with a class token, which comes first.

    The score is the attention that the class token pays to a patch, summed over the heads of all ranks. The metric is
    the mean of the keys over heads.

    Returns:
        score ``[images, patches]`` and metric ``[images, 1 + patches, head_dim]``, both float32.
    """
    query, key = tap.take()
    score = mean_over_ranks(cls_score(query[:, 0], key, tap.attention.scale))
    return score * get_tensor_model_parallel_world_size(), mean_over_ranks(key.float().sum(dim=2) / key.shape[2])


def received_attention(tap: Tap, units: Sequence[int], patches_per_token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage 1's score and metric for a tower without a class token, by token.

    The score is the attention that a token's patches receive: mean over the patches and over heads, sum over queries.
    The metric is the mean of their keys over patches and heads.

    Args:
        tap: a tap behind its run. Patches of a token lie side by side.
        units: tokens of each unit.
        patches_per_token: how many patches one token is made of.

    Returns:
        score ``[tokens]`` and metric ``[tokens, head_dim]``, both float32.
    """
    query, key = (seen.flatten(0, 1) for seen in tap.take())
    score = received_score(query, key, [size * patches_per_token for size in units], tap.attention.scale)
    score, keys = mean_over_ranks(score), mean_over_ranks(key.float().mean(dim=1))
    return score.view(-1, patches_per_token).mean(dim=1), keys.unflatten(0, (-1, patches_per_token)).mean(dim=1)
