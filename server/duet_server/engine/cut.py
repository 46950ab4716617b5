"""Stage 1: cuts the units that the tower encoded to their dominant and contextual tokens."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from duet_kernels import select_and_merge, to_device
from duet_server.plan import Unit


class Encoded(NamedTuple):
    """What the tower made of some units, one after another.

    If a class token enters the language model, ``rows`` and ``metric`` have its row before each unit's tokens.
    """

    rows: torch.Tensor  # [tokens, dim]
    score: torch.Tensor  # [tokens without class tokens] float32; higher stays
    metric: torch.Tensor  # [tokens, any], compared by cosine


class CutUnit(NamedTuple):
    """The rows of a unit that enter the language model, and the token that each row stands at."""

    rows: torch.Tensor  # [kept, dim]
    places: torch.Tensor | None  # [kept] int64, -1 for CLS; None if all tokens are there, in order


def cut(encoded: Encoded, units: Sequence[Unit], *, has_cls: bool, in_place: bool) -> list[CutUnit]:
    """Keep of each unit what its counts say. A unit without counts keeps all its tokens, and not its class token.

    Units with equally many tokens are cut together.

    Args:
        encoded: the tower's output.
        units: its units, in order.
        has_cls: whether the rows have class tokens.
        in_place: whether rows are sorted by place; if not, contextual rows follow the dominant ones.
    """
    rows, score, metric = split_units(encoded, units, has_cls=has_cls)
    result = [CutUnit(unit_rows[int(has_cls) :], None) for unit_rows in rows]
    groups = defaultdict(list)
    for idx, unit in enumerate(units):
        if unit.is_cut:
            groups[unit.num_tokens].append(idx)
    for num_tokens, chosen in groups.items():
        hidden, scores, metrics = (torch.stack([part[idx] for idx in chosen]) for part in (rows, score, metric))
        settings = [units[idx].counts for idx in chosen]
        tokens, _, places = select_and_merge(hidden, scores, metrics, settings, has_cls=has_cls)
        counts = [units[idx].num_entering for idx in chosen]
        if in_place:
            stride = num_tokens + 1  # places begin at -1, for CLS
            firsts = [stride * position for position, count in enumerate(counts) for _ in range(count)]
            order = (places + to_device(firsts, places.device, torch.int64)).argsort()
            tokens, places = tokens[order], places[order]
        for idx, *kept in zip(chosen, tokens.split(counts), places.split(counts), strict=True):
            result[idx] = CutUnit(*kept)
    return result


def split_units(encoded: Encoded, units: Sequence[Unit], *, has_cls: bool) -> list[tuple[torch.Tensor, ...]]:
    """The rows, the scores and the metrics of each unit."""
    sizes = [unit.num_tokens for unit in units]
    with_cls = [size + int(has_cls) for size in sizes]
    return [part.split(lengths) for part, lengths in zip(encoded, (with_cls, sizes, with_cls), strict=True)]
