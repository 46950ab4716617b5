"""The playground in Debian's Chromium, with random weights: 24 x 24 patches, boundaries 4 and 6 of 8 layers."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.golden_cases import golden_cases
from tests.serving.shared.playground_page import CHAT, PREVIEW, asked, kinds_of_patches

PICTURE = golden_cases("llava_mha")[0].picture_path
QUESTION = "What is in the picture?"
MARKUP = '<img src=x onerror="document.title=1"> & <b>bold</b>'


def test_kept_patches_are_drawn_on_an_uploaded_picture(playground, server):
    playground.upload(PICTURE)
    playground.wait_for_patches("A")
    playground.wait_for_patches("B")
    (described,) = asked(server, PREVIEW, PICTURE, QUESTION, "balanced")["patches"]
    merged_into = described["stage1"]["contextual"]
    originals = playground.patch_colors("B")  # off
    choices = playground.panel("A").get_by_role("radio")
    expect(choices).to_have_count(3)
    for choice, segment in zip(choices.all(), described["segments"], strict=True):
        choice.check(force=True)
        kept, merged, dropped = kinds_of_patches(playground.patch_colors("A"), originals).values()
        assert kept == set(segment["patches"])
        assert merged == {patch for token in segment["contextual"] for patch in merged_into[token]["patches"]}
        assert len(kept | merged | dropped) == 576
    assert [label.inner_text().split()[-1] for label in playground.panel("A").locator(".segments label").all()] == [
        "202",
        "101",
        "0",
    ]


def test_sliding_shows_what_it_saves(playground, server):
    playground.upload(PICTURE)
    playground.wait_for_patches("A")
    playground.slider("A").focus()
    with playground.page.expect_request(f"**{PREVIEW}") as sent:
        playground.page.keyboard.press("End")
    assert sent.value.post_data_json["compression"] == {"reduction": 0.97}
    expect(playground.panel("A").get_by_role("button", pressed=True)).to_have_count(0)
    playground.wait_for_patches("A")
    plan = asked(server, "/v1/compression/plan", PICTURE, QUESTION, {"reduction": 0.97})
    usage = plan["compression"]
    cache = usage["kv_cache"]
    saved = 1 - cache["token_layers"] / cache["token_layers_uncompressed"]
    expect(playground.figure("A", "Visual tokens")).to_have_text(f"{round(100 * usage['reduction'], 1):g}%")
    expect(playground.figure("A", "KV cache")).to_have_text(f"{round(100 * saved, 1):g}%")
    playground.page.keyboard.press("Home")
    expect(playground.figure("A", "KV cache")).to_have_text("0%")


def test_both_answers_stream_one_after_the_other(playground, server):
    playground.upload(PICTURE)
    playground.wait_for_patches("B")
    playground.answer("A").evaluate(
        "(text) => { text.lengths = new Set(); new MutationObserver(() => text.lengths.add(text.textContent.length))"
        ".observe(text, {childList: true}); }"
    )
    playground.ask()
    expect(playground.status()).to_have_text(re.compile(r"^A: first token after .*s\. B: first token after .*s\.$"))
    assert playground.chats() == ["sent", "done", "sent", "done"]
    for name, compression in (("A", "balanced"), ("B", "off")):
        answer = asked(server, CHAT, PICTURE, QUESTION, compression)
        assert playground.answer(name).text_content() == answer["choices"][0]["message"]["content"]
        expect(playground.figure(name, "first token")).to_have_text(re.compile(r"^[\d.]+\sm?s$"))
        num_tokens = answer["usage"]["completion_tokens"]
        expect(playground.panel(name).get_by_text(re.compile(rf"^{num_tokens} tokens in "))).to_be_visible()
    assert playground.answer("A").evaluate("(text) => text.lengths.size") > 10, "it came in pieces"


def test_a_new_setting_ends_the_answer(playground):
    sent = iter([True])
    # The second answer never begins, so that however late the key is pressed, an answer is in progress.
    playground.page.route(f"**{CHAT}", lambda route: route.continue_() if next(sent, False) else None)
    playground.use_sample()
    playground.set_length(1200)
    playground.ask()
    expect(playground.answer("A")).not_to_be_empty()
    playground.slider("B").press("ArrowRight")
    expect(playground.status()).to_have_text("Stopped.")
    assert playground.chats()[-1] == "failed"
    playground.wait_for_patches("B")
    expect(playground.page.get_by_role("button", name="Ask")).to_be_visible()


def test_what_the_server_refuses_is_a_sentence(playground):
    playground.upload(PICTURE)
    playground.wait_for_patches("B")
    playground.set_length(999999)
    playground.ask()
    expect(playground.panel("A").get_by_role("alert")).to_have_text(re.compile(r"max_tokens.*999999"))
    expect(playground.status()).to_have_text("A: no answer. B: no answer.")


def test_what_is_no_picture_is_a_sentence(playground, tmp_path):
    playground.ask()
    alert = playground.page.locator("#trouble")
    expect(alert).to_have_text("Choose, drop or paste a picture first, or use the sample.")
    (tmp_path / "notes.txt").write_text("no picture")
    playground.upload(tmp_path / "notes.txt")
    expect(alert).to_have_text("notes.txt is not a picture that this browser can read.")


def test_markup_in_an_answer_stays_text(playground):
    chunk = {"choices": [{"delta": {"content": MARKUP}}]}
    events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    playground.page.route(f"**{CHAT}", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    playground.use_sample()
    playground.ask()
    expect(playground.answer("B")).to_have_text(MARKUP)
    assert playground.answer("B").locator("*").count() == 0


def test_an_api_key_is_asked_for_and_kept_in_the_tab(playground):
    page = playground.page

    def guard(route):
        if route.request.headers.get("authorization") == "Bearer a key":
            return route.fallback()
        return route.fulfill(status=401, json={"error": {"message": "Authorization is missing.", "code": 401}})

    page.route("**/v1/**", guard)
    page.reload()
    expect(page.locator("#trouble")).to_have_text("Authorization is missing.")
    page.get_by_label("API key").fill("a key")
    page.keyboard.press("Tab")
    expect(playground.panel("A")).to_be_visible()
    page.reload()
    expect(playground.panel("A")).to_be_visible()
    other_tab = page.context.new_page()
    other_tab.goto(playground.base_url)
    assert other_tab.locator("#key").input_value() == ""


def test_a_model_without_compression_has_nothing_to_show(playground):
    info = {"model": "other", "supported": False}
    playground.page.route("**/v1/compression", lambda route: route.fulfill(json=info))
    playground.page.reload()
    expect(playground.page.get_by_text("other is served without compression")).to_be_visible()
    expect(playground.page.get_by_role("form")).to_be_hidden()


def test_a_server_that_is_away_can_be_asked_again(playground):
    page = playground.page
    page.route("**/v1/compression", lambda route: route.abort("connectionrefused"), times=1)
    page.reload()
    expect(page.locator("#trouble")).to_have_text("The server cannot be reached.")
    playground.ask()
    expect(playground.panel("A")).to_be_visible()


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_a_picture_can_be_pasted_and_dropped(playground, event):
    playground.page.evaluate(
        """async ([name, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "picture.png", {type: "image/png"}));
          const event = name === "paste" ? new ClipboardEvent(name, {clipboardData: data, bubbles: true})
                                         : new DragEvent(name, {dataTransfer: data, bubbles: true});
          document.body.dispatchEvent(event);
        }""",
        [event, list(PICTURE.read_bytes())],
    )
    playground.wait_for_patches("A")
    expect(playground.page.get_by_role("img", name="picture.png", exact=True)).to_be_visible()


def test_one_setting_alone(playground):
    playground.page.get_by_label("Compare with a second setting").uncheck()
    expect(playground.panel("B")).to_have_count(0)
    playground.use_sample()
    playground.ask()
    expect(playground.status()).to_have_text(re.compile(r"^A: first token after \S+\sm?s\.$"))
    assert playground.chats() == ["sent", "done"]
