"""The playground with a keyboard only, on a phone screen, and in dark mode."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.serving.shared.playground_page import DESKTOP, PHONE

# For every visible text, its contrast to the background and its size in pixels.
LEGIBILITY = """() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const color = parse(getComputedStyle(element).backgroundColor);
    return color.length === 3 || color[3] === 1 ? color : behind(element.parentElement);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const { textContent, parentElement } = texts.currentNode;
    if (!textContent.trim() || !parentElement.checkVisibility()) continue;
    const style = getComputedStyle(parentElement);
    const [bright, dark] = [light(parse(style.color)), light(behind(parentElement))].sort((a, b) => b - a);
    found.push([textContent.trim(), (bright + 0.05) / (dark + 0.05), parseFloat(style.fontSize)]);
  }
  return found;
}"""


def test_the_keyboard_is_enough(playground):
    page = playground.page
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
              const own = document.activeElement;
              const shown = own.matches(".unseen") ? own.closest("label") : own;
              return [own.id || own.type || own.tagName, getComputedStyle(shown).outlineStyle];
            }"""
        )
        reached.append(focused[0])
        assert focused[1] != "none", f"no focus to be seen on {focused}"
        if focused[0] == "sample":
            page.keyboard.press("Enter")
            playground.wait_for_patches("A")
        if reached.count("radio") == 2:
            break
    assert reached[:5] == ["file", "sample", "question", "submit", "compare"]
    assert {"range", "button"} <= set(reached)
    page.keyboard.press("ArrowRight")
    expect(playground.panel("B").get_by_role("radio").nth(1)).to_be_checked()
    page.locator("#question").press("Control+Enter")
    expect(playground.answer("B")).not_to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_is_legible(open_page, viewport, scheme):
    playground = open_page(viewport=viewport, color_scheme=scheme)
    expect(playground.page.get_by_text("This is the demo model")).to_be_visible()
    assert playground.page.get_by_label("Compare with a second setting").is_checked() == (viewport == DESKTOP)
    playground.use_sample()
    playground.set_length(999999)
    playground.ask()
    expect(playground.panel("A").get_by_role("alert")).not_to_be_empty()
    texts = playground.page.evaluate(LEGIBILITY)
    assert len(texts) > 30
    assert not [text for text in texts if text[1] < 4.5 or text[2] < 13]
    assert playground.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    background = playground.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 384) == (scheme == "dark")
