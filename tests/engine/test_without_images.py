"""An engine that takes no images: vLLM loads no tower, and text is served as by Hugging Face's model."""

from __future__ import annotations

import pytest
import torch

from tests.engine.in_process import Ask, in_process_engine, noise_picture, text_ids
from tests.golden_cases import IMAGE_TOKEN_ID, checkpoint_path


def test_text_is_served_without_a_tower():
    from transformers import LlavaForConditionalGeneration

    ids = [1, *text_ids(3, 40)]
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint_path("llava_gqa"), dtype=torch.float32)
    expected = model.generate(torch.tensor([ids]), do_sample=False, min_new_tokens=12, max_new_tokens=12)
    with in_process_engine(checkpoint_path("llava_gqa"), limit_mm_per_prompt={"image": 0}) as engine:
        assert engine.tokens(Ask(ids)) == [expected[0, len(ids) :].tolist()]
        assert len(engine.model.decoder.segments) == 1
        with pytest.raises(ValueError, match="text-only"):
            engine.add(Ask([1, IMAGE_TOKEN_ID, 30], [noise_picture(1)]))
