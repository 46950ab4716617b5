from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import (
    PromptLayout,
    SettingsError,
    Span,
    VisualRows,
    check_ends_on_text,
    guiding_rows,
    make_layout,
)

TWO_POOLS = make_layout(20, [(2, 6), (10, 14)])
ENDS_VISUAL = make_layout(10, [(2, 4), (7, 10)])


@st.composite
def layouts(draw):
    """A prompt as a sequence of texts and images; images may be adjacent."""
    stretches = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), min_size=1, max_size=8))
    spans, end = [], 0
    for is_visual, length in stretches:
        spans += [(end, end + length)] if is_visual else []
        end += length
    return make_layout(end, draw(st.permutations(spans)))


@st.composite
def structured_layouts(draw):
    """The same, with structure inside the images. An image begins and ends with a visual token."""
    plain = draw(layouts())
    inner = [row for pool in plain.pools for row in range(pool.start + 1, pool.end - 1)]
    structure = draw(st.sets(st.sampled_from(inner))) if inner else ()
    return make_layout(plain.num_tokens, [(pool.start, pool.end) for pool in plain.pools], structure)


def placeholder(offset, mask):
    """vLLM's ``PlaceholderRange``; an int is the length of one without a mask."""
    is_embed = None if isinstance(mask, int) else torch.tensor(mask) > 0
    return SimpleNamespace(offset=offset, length=mask if is_embed is None else len(mask), is_embed=is_embed)


def test_span_is_half_open():
    span = Span(2, 6)
    assert (len(span), 1 in span, 2 in span, 5 in span, 6 in span) == (4, False, True, True, False)


def test_make_layout_sorts_and_merges_what_no_text_separates():
    layout = make_layout(30, [(12, 16), (20, 24), (4, 8), (8, 12)])
    assert layout == PromptLayout(30, (Span(4, 16), Span(20, 24)))
    assert (layout.num_visual_tokens, layout.num_text_tokens) == (16, 14)


def test_make_layout_of_text_only():
    assert make_layout(7, []) == PromptLayout(7, ())


def test_a_prompt_may_be_visual_from_end_to_end():
    assert make_layout(6, [(0, 3), (3, 6)]).pools == (Span(0, 6),)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 4), (3, 6)], r"\[3, 6\) overlaps the one that ends at 4"),
        ([(2, 4), (2, 4)], r"\[2, 4\) overlaps"),
        ([(8, 11)], r"\[8, 11\) is empty or reaches outside the prompt, \[0, 10\)"),
        ([(-1, 4)], r"\[-1, 4\) is empty or reaches outside"),
        ([(4, 4)], r"\[4, 4\) is empty"),
        ([(5, 4)], r"\[5, 4\) is empty"),
    ],
)
def test_make_layout_refuses_spans_that_fit_no_prompt(spans, message):
    with pytest.raises(ValueError, match=message):
        make_layout(10, spans)


@given(layouts())
def test_pools_ascend_with_text_between_them(layout):
    edges = [edge for pool in layout.pools for edge in (pool.start, pool.end)]
    assert edges == sorted(set(edges))
    assert sum(layout.is_visual(row) for row in range(layout.num_tokens)) == layout.num_visual_tokens


def test_all_text_after_the_first_pool_guides():
    assert guiding_rows(TWO_POOLS, "all") == (6, 7, 8, 9, 14, 15, 16, 17, 18, 19)


def test_last_is_the_prompts_last_row():
    assert guiding_rows(TWO_POOLS, "last") == (19,)


def test_salient_rows_guide_with_the_last_row_in_order_and_once():
    assert guiding_rows(TWO_POOLS, "salient", [16, 7, 16, 19]) == (7, 16, 19)
    assert guiding_rows(TWO_POOLS, "salient") == (19,)


def test_salient_rows_before_the_first_pool_guide_nothing():
    assert guiding_rows(TWO_POOLS, "salient", [0, 1, 8]) == (8, 19)


@pytest.mark.parametrize("text", ["all", "last"])
def test_salient_rows_are_read_only_for_salient(text):
    assert guiding_rows(TWO_POOLS, text, [3, 99]) == guiding_rows(TWO_POOLS, text)


@pytest.mark.parametrize(("text", "rows"), [("all", (4, 5, 6, 9)), ("salient", (5, 9)), ("last", (9,))])
def test_a_prompt_that_ends_on_a_visual_token_is_guided_by_it(text, rows):
    assert guiding_rows(ENDS_VISUAL, text, [5]) == rows


@pytest.mark.parametrize("text", ["all", "salient", "last"])
def test_nothing_guides_a_prompt_without_pools(text):
    assert guiding_rows(make_layout(9, []), text, [3]) == ()


@pytest.mark.parametrize(
    ("salient", "message"),
    [
        ([3], "salient row 3 is a visual token, expected a text row"),
        ([7, 13], "salient row 13 is a visual token"),
        ([20], r"salient row 20 is outside the prompt, \[0, 20\)"),
        ([-1], "salient row -1 is outside"),
    ],
)
def test_salient_rows_must_be_text_rows_of_the_prompt(salient, message):
    with pytest.raises(ValueError, match=message):
        guiding_rows(TWO_POOLS, "salient", salient)


def plain_guiding_rows(layout, guide, salient):
    """The definition, row by row; None if a salient row is refused."""
    if guide == "salient" and any(not 0 <= row < layout.num_tokens or layout.is_visual(row) for row in salient):
        return None
    last, text = layout.num_tokens - 1, [row for row in range(layout.num_tokens) if not layout.is_visual(row)]
    chosen = {"all": text, "salient": salient, "last": []}[guide]
    return tuple(sorted({last, *[row for row in chosen if row >= layout.pools[0].end]})) if layout.pools else ()


@given(layouts(), st.sampled_from(["all", "salient", "last"]), st.data())
def test_guiding_rows_are_the_definitions(layout, guide, data):
    salient = data.draw(st.lists(st.integers(-1, layout.num_tokens), max_size=5))
    expected = plain_guiding_rows(layout, guide, salient)
    if expected is None and layout.pools:
        with pytest.raises(ValueError, match="salient row"):
            guiding_rows(layout, guide, salient)
    else:
        assert guiding_rows(layout, guide, salient) == (expected or ())


def test_refuses_another_guide():
    with pytest.raises(ValueError, match="guide is 'some', expected one of all, salient, last"):
        guiding_rows(TWO_POOLS, "some")


@given(layouts(), st.sampled_from(["all", "salient", "last"]), st.data())
def test_every_pool_has_a_guide_and_guides_are_text(layout, text, data):
    text_rows = [row for row in range(layout.num_tokens) if not layout.is_visual(row)]
    salient = data.draw(st.lists(st.sampled_from(text_rows))) if text_rows else []
    rows = guiding_rows(layout, text, salient)
    assert list(rows) == sorted(set(rows))
    assert not any(layout.is_visual(row) for row in rows if row != layout.num_tokens - 1)
    for pool in layout.pools:
        assert rows[-1] >= pool.end or rows[-1] in pool
        assert rows[0] >= layout.pools[0].end or rows == (layout.num_tokens - 1,)


def test_a_prompt_that_ends_on_an_image_cannot_drop_tokens():
    check_ends_on_text(make_layout(10, [(4, 9)]))
    with pytest.raises(SettingsError, match=r"messages is .* expected text after the last image"):
        check_ends_on_text(make_layout(10, [(4, 10)]))


def test_structure_lies_in_pools_and_counts_as_text():
    layout = make_layout(20, [(10, 14), (2, 6)], [12, 3, 4])
    assert layout == PromptLayout(20, (Span(2, 6), Span(10, 14)), (3, 4, 12))
    assert [layout.num_structure(pool) for pool in layout.pools] == [2, 1]
    assert (layout.num_visual_tokens, layout.num_text_tokens) == (5, 15)


@given(structured_layouts())
def test_every_row_is_text_structure_or_visual(layout):
    in_pools = {row for pool in layout.pools for row in range(pool.start, pool.end)}
    assert layout.num_visual_tokens == len(in_pools - set(layout.structure))
    assert layout.num_visual_tokens + layout.num_text_tokens == layout.num_tokens
    assert sum(layout.num_structure(pool) for pool in layout.pools) == len(layout.structure)
    assert all(
        layout.num_structure(pool) == sum(row in pool for row in layout.structure) < len(pool) for pool in layout.pools
    )


@given(structured_layouts(), st.sampled_from(["all", "salient", "last"]), st.data())
def test_structure_never_guides(layout, guide, data):
    text = [row for row in range(layout.num_tokens) if not layout.is_visual(row)]
    salient = data.draw(st.lists(st.sampled_from(text))) if text else []
    rows = guiding_rows(layout, guide, salient)
    assert not set(rows) & set(layout.structure)
    assert rows == guiding_rows(
        make_layout(layout.num_tokens, [(p.start, p.end) for p in layout.pools]), guide, salient
    )
    for row in layout.structure[:1]:
        with pytest.raises(ValueError, match=f"salient row {row} is"):
            guiding_rows(layout, "salient", [row])


@pytest.mark.parametrize(
    ("mask", "span", "structure"),
    [
        (3, (5, 8), []),
        ([1, 1, 1], (5, 8), []),
        ([0, 0, 1, 1], (7, 9), []),
        ([1, 1, 0], (5, 7), []),
        ([0, 1, 0, 0, 1, 1, 0, 1, 0], (6, 13), [7, 8, 11]),
        ([0, 1, 0], (6, 7), []),
    ],
    ids=["no mask", "all", "leading", "trailing", "inner", "one token"],
)
def test_the_rows_of_a_placeholder(mask, span, structure):
    assert VisualRows.of([placeholder(5, mask)]) == VisualRows([span], structure)


def test_the_rows_of_several_placeholders():
    """The first two lie side by side, but not their visual tokens; the last two do."""
    placeholders = [placeholder(2, [0, 1, 1, 0]), placeholder(6, [1, 0, 0, 1, 1]), placeholder(11, 3)]
    visual = VisualRows.of(placeholders)
    assert visual == VisualRows([(3, 5), (6, 11), (11, 14)], [7, 8])
    assert make_layout(15, *visual) == PromptLayout(15, (Span(3, 5), Span(6, 14)), (7, 8))
    assert VisualRows.of([]) == VisualRows([], [])


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.booleans(), min_size=1, max_size=12)), max_size=5))
def test_visual_rows_are_those_of_the_masks(images):
    placeholders, visual_rows, end = [], set(), 0
    for gap, mask in images:
        if any(mask):
            placeholders.append(placeholder(end + gap, mask))
            visual_rows |= {end + gap + place for place, is_visual in enumerate(mask) if is_visual}
            end += gap + len(mask)
    spans, structure = VisualRows.of(placeholders)
    assert {row for start, end in spans for row in range(start, end)} - set(structure) == visual_rows
    assert all(start in visual_rows and end - 1 in visual_rows for start, end in spans)
    assert len(spans) == len(placeholders)
    assert make_layout(end + 1, spans, structure).num_visual_tokens == len(visual_rows)
