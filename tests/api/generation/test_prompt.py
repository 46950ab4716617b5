from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.multimodal.inputs import PlaceholderRange

from duet_server.api.errors import RequestRefusedError
from duet_server.api.generation.prompt import CompressedPrompt, RenderedPrompt, find_part, user_texts
from duet_server.plan import Unit, VisualItem, VisualRows, presets, resolve_settings
from tests.plan.shapes import LLAVA_7B, llava

IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def test_only_the_users_text_parts_count():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}, "Where?"]},
        {"role": "assistant", "content": "There."},
        {"role": "user", "content": "And when?"},
        {"role": "user", "content": [{"type": "input_text", "text": "Who?"}]},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": None},
    ]
    assert user_texts(messages) == ["What?", "Where?", "And when?", "Who?"]


def test_parts_are_found_by_type_or_key():
    assert find_part([{"role": "user", "content": [{"image_embeds": "AA"}]}], "image_embeds") == {"image_embeds": "AA"}
    assert find_part([{"role": "user", "content": [{"type": "image_embeds"}]}], "image_embeds")
    assert not find_part([{"role": "user", "content": [IMAGE, "image_embeds"]}], "image_embeds")


def test_items_are_the_image_placeholders():
    """The first picture comes twice: vLLM keeps one of its items."""
    first, second = ([[2, 2, 1, 1, 4]], 4), ([[1, 3, 0, 0, 0]], 3)
    items = [
        {
            "duet_units_image": SimpleNamespace(data=torch.tensor(units)),
            "duet_length_image": SimpleNamespace(data=torch.tensor(length)),
        }
        for units, length in (first, second)
    ]
    placeholders = [PlaceholderRange(3, 2), PlaceholderRange(9, 2), PlaceholderRange(6, 3)]
    engine_input = {
        "prompt": "a",
        "prompt_token_ids": list(range(12)),
        "mm_placeholders": {"image": placeholders},
        "mm_hashes": {"image": ["one", "one", "two"]},
        "mm_kwargs": {"image": [items[0], None, items[1]]},
    }
    cut, whole = VisualItem("image", (3, 5), 4, (Unit(2, 2, 1, 1, 4),)), VisualItem("image", (6, 9), 3, (Unit(1, 3),))
    rendered = RenderedPrompt.from_engine_input(engine_input)
    assert rendered.items == (cut, whole, cut._replace(span=(9, 11)))
    assert rendered.visual_spans == ((3, 5), (6, 9), (9, 11))
    nothing = RenderedPrompt.from_engine_input({"prompt_token_ids": [1]})
    assert nothing == RenderedPrompt(None, [1], VisualRows([], []), ())


def test_placeholders_of_another_length_fail_an_assertion():
    """The prompt must have been rendered with the counts that it is planned with."""
    image = VisualItem("image", (1, 577), 576, (Unit(24, 24, 72, 30, 4),))
    prompt = RenderedPrompt("", range(600), VisualRows([(1, 577)], []), (image,))
    with pytest.raises(AssertionError, match="num_entering=102"):
        CompressedPrompt.make(presets(LLAVA_7B)["aggressive"], prompt, LLAVA_7B)


def test_a_picture_of_many_positions_and_few_tokens():
    """One row of 100 tokens of which five are left: where tokens keep their positions, these are still 100."""
    shape = llava(num_patches=None, has_cls=False)
    settings = resolve_settings({"dominant": 5, "contextual": 0}, shape, max_reduction=1)
    image = VisualItem("image", (1, 6), 100, (Unit(1, 100, 5, 0, 4),))
    compressed = CompressedPrompt.make(
        settings, RenderedPrompt("", range(9), VisualRows([(1, 6)], []), (image,)), shape
    )
    compressed.check_items("asked", shape, max_reduction=1, max_excess=95)
    with pytest.raises(RequestRefusedError, match="more visual tokens: without them this prompt has 95 positions more"):
        compressed.check_items("asked", shape, max_reduction=1, max_excess=94)
