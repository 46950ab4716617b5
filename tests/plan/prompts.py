"""Images and videos of any size, and prompts that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hypothesis import strategies as st

from duet_server.plan import CompressionSettings, ModelShape, VisualItem, VisualRows, cut_units, resolve_settings
from duet_server.plan.wire import decode_rule, encode_processor_kwargs
from tests.plan.shapes import llava, schedules, shapes

ANY_SIZE = llava(num_patches=None, has_cls=False)

sides = st.integers(1, 15)
grids = st.lists(st.tuples(sides, sides), min_size=1, max_size=4)  # of the units of one image or video
budgets = st.one_of(
    st.floats(0, 0.97).map(lambda share: {"reduction": share}),
    st.floats(0.5, 1000).map(lambda tokens: {"visual_tokens": tokens}),
)


def any_size(shape: ModelShape) -> ModelShape:
    """The same model for images that differ in size."""
    return replace(shape, vision=replace(shape.vision, num_patches=None, image_size=0))


def variable_shapes() -> st.SearchStrategy[ModelShape]:
    """Any depth and any boundaries, with and without CLS, for images of any size."""
    return st.booleans().flatmap(shapes).map(any_size)


def requests(shape: ModelShape) -> st.SearchStrategy[dict]:
    """Budgets, counts and shares, each with and without stage 2."""
    numbers = st.one_of(st.floats(0.01, 0.5), st.integers(1, 60))
    counts = st.fixed_dictionaries({"dominant": numbers, "contextual": st.one_of(st.just(0), numbers)})
    keeps = schedules(len(shape.boundaries)).map(lambda keep: {"keep": list(keep)})
    return st.one_of(budgets, counts, keeps, st.tuples(counts, keeps).map(lambda pair: pair[0] | pair[1]))


def visual_item(
    settings: CompressionSettings,
    shape: ModelShape,
    item_grids: Sequence[tuple[int, int]],
    start: int = 1,
    num_tokens: int | None = None,
) -> VisualItem:
    """An image of these units without structure, cut by the rule that the wire carries.

    ``num_tokens`` are its visual tokens without compression; None for all that its units make.
    """
    kwargs = json.loads(json.dumps(encode_processor_kwargs(settings, shape)))
    units = cut_units(decode_rule(kwargs), item_grids, has_cls=shape.vision.has_cls, num_tokens=num_tokens)
    num_tokens = num_tokens or sum(unit.num_tokens for unit in units)
    item = VisualItem("image", (start, start), num_tokens, tuple(units))
    return item._replace(span=(start, start + item.num_entering))


class Prompt(NamedTuple):
    """The arguments of ``plan_prompt``."""

    settings: CompressionSettings
    shape: ModelShape
    num_tokens: int
    visual: VisualRows
    items: list[VisualItem]


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Images with structure between their units; some stand side by side. The prompt ends on text."""
    shape = draw(variable_shapes())
    settings = resolve_settings(draw(requests(shape)), shape, max_reduction=1.0)
    visual, items, end = VisualRows([], []), [], 0
    for item_grids in draw(st.lists(grids, min_size=1, max_size=4)):
        start = end = end + draw(st.integers(0, 2))
        item = visual_item(settings, shape, item_grids, start)
        for idx, unit in enumerate(item.units):
            num_structure = draw(st.integers(0, 2)) if idx else 0
            visual.structure.extend(range(end, end + num_structure))
            end += num_structure + unit.num_entering
        visual.spans.append((start, end))
        items.append(item._replace(span=(start, end)))
    return Prompt(settings, shape, end + draw(st.integers(1, 5)), visual, items)
