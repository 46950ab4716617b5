"""From the images and videos of a prompt to its plan."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given

from duet_server.plan import (
    CompressionSettings,
    Unit,
    VisualItem,
    VisualRows,
    make_layout,
    make_plan,
    plan_prompt,
    resolve_settings,
)
from tests.plan.prompts import ANY_SIZE, Prompt, prompts, visual_item
from tests.plan.shapes import llava


def pool_lengths(plan):
    """For each segment, the rows that it holds of each pool."""
    return [[len(pool) for pool in segment.pools] for segment in plan.segments]


def test_what_an_item_holds():
    units = (Unit(24, 24, 72, 30, 4), Unit(2, 3))
    item = VisualItem("image", (5, 113), 582, units)
    settings = CompressionSettings(72, 30, 4, (0.5, 0.0), "last", "custom")
    assert (item.is_cut, item.num_entering) == (True, 108)
    assert item.keep(settings, ANY_SIZE) == (0.5, 0.0)
    assert item.segment_counts(settings, ANY_SIZE) == (108, 54, 0)


def test_an_item_that_is_not_cut_enters_as_the_model_makes_it():
    """With its newlines, if there are any; embeddings have no units at all."""
    settings = CompressionSettings(None, 0, None, (0.5, 0.0), "last", "custom")
    for units in ((Unit(2, 2), Unit(2, 2)), ()):
        item = VisualItem("image", (0, 10), 10, units)
        assert (item.is_cut, item.num_entering) == (False, 10)
        assert item.segment_counts(settings, ANY_SIZE) == (10, 5, 0)


def test_images_of_a_pool_may_have_different_keeps():
    """A budget of 64 leaves the image of 8 x 8 whole; the one of 24 x 24 is cut, and drops half of its rows."""
    settings = resolve_settings({"visual_tokens": 64}, ANY_SIZE)
    large = visual_item(settings, ANY_SIZE, [(24, 24)])
    small = visual_item(settings, ANY_SIZE, [(8, 8)], start=large.span[1])
    assert (large.num_entering, small.num_entering) == (102, 64)
    visual = VisualRows([large.span, small.span], [])
    plan = plan_prompt(settings, ANY_SIZE, small.span[1] + 5, visual, [large, small])
    assert pool_lengths(plan) == [[102 + 64], [51 + 64], [64]]


def test_three_keeps_in_one_pool_and_a_fourth_in_another():
    """A budget of 64: 8 x 8 stays whole, 9 x 9 keeps all in stage 1 but not in stage 2, 24 x 24 loses in both."""
    settings = resolve_settings({"visual_tokens": 64}, ANY_SIZE)
    items, start = [], 1
    for side, gap in ((24, 0), (9, 0), (8, 3), (9, 4)):
        items.append(visual_item(settings, ANY_SIZE, [(side, side)], start))
        start = items[-1].span[1] + gap
    counts = [item.segment_counts(settings, ANY_SIZE) for item in items]
    assert [item.is_cut for item in items] == [True, False, False, False]
    assert counts[0] == (102, 51, 0)
    assert counts[2] == (64, 64, 64)
    assert counts[1] == counts[3]
    assert counts[1][0] == 81 > counts[1][1] > counts[1][2] > 0
    plan = plan_prompt(settings, ANY_SIZE, start, VisualRows([item.span for item in items], []), items)
    assert pool_lengths(plan) == [[sum(column[:3]), column[3]] for column in zip(*counts, strict=True)]


def test_images_with_one_keep_are_counted_together():
    """Three images of 3 tokens keep floor(9 / 2) = 4, not three times floor(3 / 2)."""
    settings = CompressionSettings(None, 0, None, (0.5, 0.0), "last", "custom")
    items = [VisualItem("image", (start, start + 3), 3, (Unit(1, 3),)) for start in (1, 4, 7)]
    plan = plan_prompt(settings, ANY_SIZE, 12, VisualRows([item.span for item in items], []), items)
    assert pool_lengths(plan) == [[9], [4], [0]]


def test_structure_stays_through_every_segment():
    """Two frames of 2 x 2 with two rows of structure between them: rows 1-4, 5-6, 7-10, then text."""
    settings = CompressionSettings(None, 0, None, (0.5, 0.0), "all", "custom")
    video = VisualItem("video", (1, 11), 8, (Unit(2, 2), Unit(2, 2)))
    plan = plan_prompt(settings, ANY_SIZE, 14, VisualRows([(1, 11)], [5, 6]), [video])
    assert [segment.num_visual_tokens for segment in plan.segments] == [8, 4, 0]
    assert [segment.num_tokens for segment in plan.segments] == [14, 10, 6]
    assert plan.layout.num_text_tokens == 6


def test_a_prompt_without_images_drops_nothing():
    plan = plan_prompt(resolve_settings({"visual_tokens": 64}, ANY_SIZE), ANY_SIZE, 9, VisualRows([], []), [])
    assert [segment.num_tokens for segment in plan.segments] == [9, 9, 9]


@given(prompts())
def test_a_pool_holds_what_its_items_hold(prompt: Prompt):
    """Items with one keep are counted together, which gives at most one token more for each but the first."""
    plan = plan_prompt(*prompt)
    assert plan.guiding_rows == ()
    for idx, pool in enumerate(plan.layout.pools):
        inside = [item for item in prompt.items if item.span[0] in pool]
        num_structure = plan.layout.num_structure(pool)
        counts = [item.segment_counts(prompt.settings, prompt.shape) for item in inside]
        most_extra = len(inside) - len({item.keep(prompt.settings, prompt.shape) for item in inside})
        held = [segment[idx] for segment in pool_lengths(plan)]
        assert held[0] == len(pool) == sum(item.num_entering for item in inside) + num_structure
        for num_held, alone in zip(held, zip(*counts, strict=True), strict=True):
            assert 0 <= num_held - num_structure - sum(alone) <= most_extra
        assert all(num_structure <= later <= earlier for earlier, later in pairwise(held))


@given(prompts())
def test_the_order_of_items_and_spans_does_not_matter(prompt: Prompt):
    turned = VisualRows(prompt.visual.spans[::-1], prompt.visual.structure[::-1])
    assert plan_prompt(*prompt) == plan_prompt(*prompt[:3], turned, prompt.items[::-1])


@given(prompts())
def test_items_with_the_same_keeps_have_the_plan_of_those_keeps(prompt: Prompt):
    keeps = Counter(item.keep(prompt.settings, prompt.shape) for item in prompt.items)
    if len(keeps) == 1:
        layout = make_layout(prompt.num_tokens, *prompt.visual)
        assert plan_prompt(*prompt) == make_plan(layout, next(iter(keeps)), ())


def test_one_image_of_llava_has_the_plan_it_always_had():
    shape = llava()
    for name in ("off", "light", "balanced", "aggressive", "visionzip"):
        settings = resolve_settings(name, shape)
        image = visual_item(settings, shape, [(24, 24)])
        plan = plan_prompt(settings, shape, image.span[1] + 7, VisualRows([image.span], []), [image])
        assert plan == make_plan(make_layout(image.span[1] + 7, [image.span]), settings.keep, ())
        assert image.segment_counts(settings, shape) == settings.segment_counts(576)
