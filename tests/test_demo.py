"""The demo model as it is shipped: its files, and the quality of its answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from duet_server.demo import DEMO_CHECKPOINT, DEMO_MARK
from duet_training.demo.data import picture
from duet_training.demo.questions import QUESTION_TYPES, Question, ask

SEED, UNSEEN_SET = 7, 99  # seed and set of pictures that are in no training set
NUM_PER_TYPE = 12


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    model, report = LlavaForConditionalGeneration.from_pretrained(
        DEMO_CHECKPOINT, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_the_demo_model_is_a_small_llava(model: LlavaForConditionalGeneration):
    config = model.config
    assert (config.model_type, config.architectures) == ("llava", ["LlavaForConditionalGeneration"])
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 >= 12 * 12
    assert config.text_config.num_hidden_layers >= 8
    assert getattr(config, DEMO_MARK)
    assert (DEMO_CHECKPOINT / "model.safetensors").stat().st_size < 12_000_000


def asked(question_type: str) -> list[tuple[object, Question]]:
    """Pictures, each with a question."""
    pairs: list[tuple[object, Question]] = []
    for idx in range(10_000):
        scene, drawn, rng = picture(SEED, UNSEEN_SET, idx)
        if question := ask(scene, question_type, rng):
            pairs.append((drawn, question))
        if len(pairs) == NUM_PER_TYPE:
            break
    return pairs


@torch.no_grad()
def test_the_demo_model_answers_most_questions_on_unseen_pictures(model: LlavaForConditionalGeneration):
    """A description counts only if every word of it is right."""
    processor = AutoProcessor.from_pretrained(DEMO_CHECKPOINT)
    right, total = 0, 0
    for question_type in QUESTION_TYPES:
        for drawn, question in asked(question_type):
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(images=drawn, text=prompt, return_tensors="pt", add_special_tokens=False)
            tokens = model.generate(**inputs, max_new_tokens=48, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            right += processor.decode(tokens, skip_special_tokens=True).strip() == question.answer
            total += 1
    assert right >= 0.85 * total, f"{right} of {total}"
