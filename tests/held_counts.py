"""The counts that a request carries to the engine, from keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from duet_server.plan import make_layout, make_plan
from duet_server.plan.wire import encode_extra_args


def dropping_args(
    num_tokens: int,
    spans: Sequence[tuple[int, int]],
    keep: Sequence[float],
    guide: str = "all",
    salient: Sequence[int] = (),
) -> dict[str, Any]:
    """``extra_args`` of a prompt of ``num_tokens`` tokens whose pictures lie at ``spans``."""
    return encode_extra_args(make_plan(make_layout(num_tokens, spans), keep, ()), guide, salient)
