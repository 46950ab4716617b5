from __future__ import annotations

import base64
import io
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks.accuracy import lmms, tables
from benchmarks.accuracy.llava_prompt import MEAN_COLOR, SYSTEM, as_llava_asks, padded_to_square
from benchmarks.accuracy.lmms_benchmarks import BENCHMARKS, kept, task_config
from benchmarks.pictures import data_url, picture

METRICS = {
    "gqa": {"exact_match,none": 0.619, "exact_match_stderr,none": 0.01},
    "pope": {"pope_accuracy,none": 0.8, "pope_f1_score,none": 0.859},
    "scienceqa_img": {"exact_match,none": 0.695},
    "textvqa_val": {"exact_match,none": 0.582, "submission,none": None},
    "mme": {"mme_perception_score,none": 1510.0, "mme_cognition_score,none": 352.0},
}


def test_lmms_evals_metrics_become_the_papers_scores():
    for benchmark in BENCHMARKS:
        assert benchmark.score(METRICS[benchmark.task]) == pytest.approx(benchmark.paper)


def test_kept_is_a_mean_over_benchmarks():
    assert kept({"GQA": 60.0, "MME": 900.0}, {"GQA": 60.0, "MME": 1800.0}) == 0.75
    assert kept({"GQA": 60.0}, {"GQA": 0.0}) is None


def test_textvqa_is_asked_with_ocr_text():
    assert task_config("gqa") == "gqa"
    assert task_config("textvqa_val")["lmms_eval_specific_kwargs"]["default"]["ocr"] is True


def test_the_table_has_the_papers_numbers():
    entry = {"compression": "aggressive", "layer_average": 63.75, "scores": {"GQA": 59.0, "MME": 1800.4}, "kept": 0.951}
    all_five = {**entry, "scores": {benchmark.name: 60.0 for benchmark in BENCHMARKS}}
    custom = {**entry, "compression": {"visual_tokens": 64}, "layer_average": None, "kept": None}
    figures = {"family": "lmms-eval", "settings": [entry, all_five, custom]}
    table = tables.render({**figures, "limit": None})
    assert "| aggressive | 63.8 | 59.0 |  |  |  | 1800.4 | 95.1 |  |" in table
    assert "| aggressive | 63.8 | 60.0 | 60.0 | 60.0 | 60.0 | 60.0 | 95.1 | 95.4 |" in table
    assert '| {"visual_tokens": 64} |  | 59.0 |  |  |  | 1800.4 |  |  |' in table
    assert "| paper, uncompressed | 576.0 | 61.9 | 85.9 | 69.5 | 58.2 | 1862.0 |  |  |" in table
    assert "95.4" not in tables.render({**figures, "limit": 100})


@pytest.mark.parametrize(("size", "corner", "inside"), [((4, 2), (0, 0), (0, 1)), ((2, 4), (0, 0), (1, 0))])
def test_a_picture_lies_in_the_middle_of_its_square(size, corner, inside):
    square = padded_to_square(Image.new("RGB", size, "white"))
    assert square.size == (4, 4)
    assert (square.getpixel(corner), square.getpixel(inside)) == (MEAN_COLOR, (255, 255, 255))


def test_a_square_stays_as_it_is():
    image = Image.linear_gradient("L").convert("RGB")
    assert padded_to_square(image).tobytes() == image.tobytes()


def test_messages_get_llavas_system_prompt_and_square_pictures():
    part = {"type": "image_url", "image_url": {"url": data_url(picture((64, 48)))}}
    text = {"type": "text", "text": "What is it?"}
    system, user = as_llava_asks([{"role": "user", "content": [part, text]}])
    assert system == {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    assert user["content"][1] == text
    content = base64.b64decode(user["content"][0]["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    assert part["image_url"]["url"] == data_url(picture((64, 48)))


def test_settings_are_names_or_json():
    assert lmms.parse_args([]).compression == ["off", "light", "balanced", "aggressive"]
    words = ["--compression", "off", '{"visual_tokens": 64}', "--tasks", "gqa"]
    assert lmms.parse_args(words).compression == ["off", {"visual_tokens": 64}]


def test_a_failing_setting_keeps_the_results_of_the_others(monkeypatch, tmp_path):
    scores = {"off": 60.0, "light": 57.0}

    def evaluate(args, tasks, compression, directory):
        if compression == "balanced":
            raise ValueError("no data")
        found = {"compression": compression, "scores": {"GQA": scores[compression]}, "failed": 0}
        return found | ({"failed": 3} if compression == "light" else {})  # counted as wrong answers by lmms-eval

    monkeypatch.setattr(lmms, "load_tasks", lambda names: [])
    monkeypatch.setattr(lmms, "evaluate", evaluate)
    monkeypatch.setattr(lmms, "version", lambda name: "0")
    args = lmms.parse_args(["--compression", "off", "light", "balanced"])
    figures, failures = lmms.check(args, tmp_path / "log")
    assert [entry["kept"] for entry in figures["settings"]] == [1.0, None]
    assert failures == ["balanced: ValueError('no data')", "light: 3 requests failed"]


def test_without_lmms_eval_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(SystemExit, match=r"pip install lmms-eval==0\.7\.3 'filelock<4'"):
        lmms.main([])


def test_the_client_sends_the_setting_and_counts_what_failed():
    pytest.importorskip("lmms_eval")
    from benchmarks.accuracy.lmms_model import CompressedOpenAI

    sent = []
    usage = SimpleNamespace(model_extra={"compression": {"reduction": 0.5}})

    def create(**payload):
        sent.append(payload)
        return SimpleNamespace(usage=usage)

    model = CompressedOpenAI("light", model_version="demo1", base_url="http://127.0.0.1:9/v1", api_key="none")
    model._openai = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    model.client.chat.completions.create(messages=[], extra_body={"seed": 1})
    assert sent[0]["extra_body"] == {"seed": 1, "compression": "light"}
    assert (sent[0]["temperature"], sent[0]["messages"][0]["role"]) == (0, "system")
    assert model.usages == [{"reduction": 0.5}]
