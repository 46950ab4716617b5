"""Traces: what both stages chose for a request. Only requests with a trace id, those of previews, leave a trace."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from duet_kernels import clusters
from duet_server.engine.cut import Encoded, split_units
from duet_server.engine.step_layout import StepLayout
from duet_server.plan import Unit
from duet_server.plan.wire import TracedPicture

MAX_TRACES = 64  # the oldest is dropped first


class Traces:
    """Traces by id, kept until taken. Tensors stay on the device until then."""

    def __init__(self) -> None:
        self._traces: OrderedDict[int, dict[str, dict[int, Any]]] = OrderedDict()

    def add_items(
        self,
        traced: torch.Tensor,
        items: Sequence[Sequence[Unit]],
        encoded: Encoded,
        tile_columns: Sequence[int] | None = None,
        *,
        has_cls: bool,
        in_place: bool,
    ) -> None:
        """Note which tokens stage 1 chose and merged.

        Args:
            traced: ``[items, 4]`` integers, each row a ``TracedPicture``.
            items: the units of each item.
            encoded: what the tower made of them.
            tile_columns: as for :meth:`duet_server.engine.backbones.backbone.Backbone.tile_columns`.
            has_cls, in_place: as for :func:`duet_server.engine.cut.cut`.
        """
        units = [unit for item in items for unit in item]
        _, scores, metrics = split_units(encoded, units, has_cls=has_cls)
        noted = iter(
            _noted_unit(unit, score, metric, has_cls) if unit.is_cut else None
            for unit, score, metric in zip(units, scores, metrics, strict=True)
        )
        columns: Sequence[int | None] = tile_columns or [None] * len(items)
        for row, item, num_columns in zip(traced.tolist(), items, columns, strict=True):
            picture, about = TracedPicture(*row), {"in_place": in_place, "tile_columns": num_columns}
            of_item = [unit and unit | about for unit in islice(noted, len(item))]
            self._of(picture.trace_id)["images"][picture.image_idx] = of_item

    def add_boundary(
        self, layout: StepLayout, segment_idx: int, places: torch.Tensor, score: torch.Tensor | None
    ) -> None:
        """Note which rows stage 2 let into a segment.

        Args:
            layout: the layout of the running step.
            places: ``[rows]``, for each row of the segment its index in the whole batch.
            score: ``[keys]``, the scores that the boundary used; None if nothing was ranked.
        """
        for request_idx, plan in layout.prefills:
            if plan.trace_id:
                first, start, end = layout.starts[0, request_idx], *layout.starts[segment_idx, request_idx:][:2]
                scores = [] if score is None else _pool_scores(layout, segment_idx, request_idx, score)
                noted = {"rows": places[start:end] - first, "scores": scores}
                self._of(plan.trace_id)["segments"][segment_idx] = noted

    def take(self, trace_id: int) -> dict[str, dict[int, Any]] | None:
        """Remove the trace under ``trace_id`` and return it as lists; None if there is none.

        Returns:
            A dict with two entries. ``images`` maps an image's number in the prompt to its units: None if a unit stayed
            whole, otherwise its ``dominant`` tokens, the tokens behind each ``contextual`` one (the anchor first), the
            ``scores`` of all its tokens, whether its rows are ``in_place``, and the item's ``tile_columns``.
            ``segments`` maps the number of a segment behind a drop to the prompt ``rows`` that it holds, and the
            ``scores`` of the ranked pools: for each the pool's first row in the segment before, and one score per row.
        """
        trace = self._traces.pop(trace_id, None)
        if trace is None:
            return None
        for unit in [unit for units in trace["images"].values() for unit in units if unit is not None]:
            unit["scores"] = unit["scores"].tolist()
        for segment in trace["segments"].values():
            segment["rows"] = segment["rows"].tolist()
            segment["scores"] = [(first, pool.tolist()) for first, pool in segment["scores"]]
        return trace

    def _of(self, trace_id: int) -> dict[str, dict[int, Any]]:
        """The trace under ``trace_id``, new if there is none."""
        if trace_id not in self._traces and len(self._traces) == MAX_TRACES:
            self._traces.popitem(last=False)
        return self._traces.setdefault(trace_id, {"images": {}, "segments": {}})


def _noted_unit(unit: Unit, score: torch.Tensor, metric: torch.Tensor, has_cls: bool) -> dict[str, Any]:
    # Computed again: if two anchors are about equally near to a token, rounding may pick another anchor than in the
    # merge.
    ((dominant, contextual),) = clusters(score[None], metric[None], [unit.counts], has_cls=has_cls)
    return {"dominant": dominant, "contextual": contextual, "scores": score.clone()}


def _pool_scores(
    layout: StepLayout, segment_idx: int, request_idx: int, score: torch.Tensor
) -> list[tuple[int, torch.Tensor]]:
    """For each ranked pool of the request, its first row in the segment before and its scores."""
    boundary = layout.boundaries[segment_idx - 1]
    ranked = boundary.ranked if boundary else None
    assert ranked is not None, f"{boundary=}"
    start, end = layout.starts[segment_idx - 1, request_idx:][:2].tolist()
    pools = zip(ranked.first_row.tolist(), ranked.pool_start.tolist(), ranked.pool_length.tolist(), strict=True)
    return [(row - start, score[key : key + length].clone()) for row, key, length in pools if start <= row < end]
