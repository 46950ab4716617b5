from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.plan import PromptLayout, SettingsError, Span, check_ends_on_text, guiding_rows, make_layout

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
