from __future__ import annotations

import base64
import io

import pytest
from PIL import Image
from transformers import AutoTokenizer

from benchmarks.robustness.small_server import write_random
from benchmarks.serving.load import Load, _busy_cores, make_requests, most_overlapping

PICTURES = Load("pictures", num_text=64, num_output=8)
TEXT = Load("text", num_text=128, num_output=8, has_picture=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_random(tmp_path_factory.mktemp("random")))


def picture(request):
    url = request.chat_messages[0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))


@pytest.mark.parametrize("load", [PICTURES, TEXT], ids=lambda load: load.name)
def test_prompts_have_the_length_that_was_asked_for(tokenizer, load):
    for request in make_requests(load, tokenizer, 3, seed=0, picture_size=336):
        prompt = tokenizer.apply_chat_template(request.chat_messages, add_generation_prompt=True, tokenize=False)
        num_tokens = len(tokenizer.encode(prompt, add_special_tokens=False))
        assert num_tokens - prompt.count("<image>") == load.num_text
        assert prompt.count("<image>") == int(load.has_picture)


def test_pictures_have_the_encoders_size(tokenizer):
    assert picture(make_requests(PICTURES, tokenizer, 1, seed=0, picture_size=336)[0]).size == (336, 336)


def test_a_seed_gives_the_same_requests_and_no_request_twice(tokenizer):
    requests = make_requests(PICTURES, tokenizer, 3, seed=0, picture_size=336)
    assert requests == make_requests(PICTURES, tokenizer, 3, seed=0, picture_size=336)
    others = make_requests(PICTURES, tokenizer, 3, seed="1", picture_size=336)
    assert len({picture(request).tobytes() for request in [*requests, *others]}) == 6


@pytest.mark.parametrize(
    ("spans", "most"),
    [([], 0), ([(0, 1), (1, 2)], 1), ([(0, 3), (1, 2), (2, 4)], 2), ([(0, 9), (1, 5), (2, 4), (6, 7)], 3)],
)
def test_most_overlapping_counts_spans_at_one_instant(spans, most):
    assert most_overlapping(spans) == most


def test_busy_cores_are_those_of_the_busiest_process():
    before = {"1 python": 9.0, "2 VLLM::APIServer_0": 1.0, "3 VLLM::EngineCore": 5.0}
    after = {**before, "2 VLLM::APIServer_0": 2.0, "3 VLLM::EngineCore": 7.0, "4 VLLM::APIServer_1": 0.5}
    busy = _busy_cores(0.4, before, after, seconds=2.0)
    assert busy == {"client_cores": 0.2, "api_cores": 0.5, "engine_cores": 1.0}
