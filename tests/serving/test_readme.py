"""The README's examples, on the demo model's server, which starts when no model is named."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image, ImageDraw

from benchmarks.robustness.small_server import FLAGS
from duet_server.demo import DEMO_NAME, DEMO_NOTICE
from tests.serving.running_server import RunningServer, picture_and_text, running_server
from tests.serving.test_examples import run_example

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("demo") / "log", ["duet_server.cli", "serve", *FLAGS]) as server:
        yield server


def ask(server: RunningServer, **fields: Any) -> dict[str, Any]:
    content = picture_and_text(REPOSITORY / "docs" / "shapes.png", QUESTION)
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 32, **fields}
    response = server.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_request_that_it_shows(server):
    assert f'"text": "{QUESTION}"' in README
    assert "docs/shapes.png" in README
    shown = re.search(r'"content": " (\w+)"\n"usage": (\{.*?), …\}\n```', README, re.DOTALL)
    answer = ask(server, compression="aggressive")
    assert answer["choices"][0]["message"]["content"].strip() == shown.group(1)
    usage = json.loads(shown.group(2).replace(', "settings": {…}', "") + "}")
    settings = answer["usage"]["compression"].pop("settings")
    assert settings["preset"] == "aggressive"
    assert usage == {key: answer["usage"][key] for key in usage}


COLORS = {"red": "#d71e23", "green": "#199b32", "blue": "#2346dc", "purple": "#9128aa", "orange": "#f58714"}
CORNERS = ((14, 14), (98, 14), (14, 98), (98, 98))


@pytest.mark.parametrize("compression", ["off", "aggressive"])
def test_the_order_of_the_parts_does_not_matter(server, compression, tmp_path):
    """vLLM's own example and many snippets put the question before the picture."""
    right = 0
    for color, (x, y) in product(COLORS, CORNERS):
        picture = Image.new("RGB", (168, 168), "#7d7d7d")
        ImageDraw.Draw(picture).ellipse((x, y, x + 56, y + 56), fill=COLORS[color])
        picture.save(tmp_path / "picture.png")
        parts = picture_and_text(tmp_path / "picture.png", QUESTION)
        answers = [
            ask(server, messages=[{"role": "user", "content": content}], compression=compression, temperature=0)
            for content in (parts, parts[::-1])
        ]
        assert answers[0]["choices"][0]["message"]["content"] == answers[1]["choices"][0]["message"]["content"]
        assert answers[0]["usage"] == answers[1]["usage"]
        right += answers[1]["choices"][0]["message"]["content"].strip() == color
    assert right == len(COLORS) * len(CORNERS)


def test_it_says_what_it_is(server):
    about = server.client.get("/v1/compression").json()
    assert (about["model"], about["notice"], about["boundaries"]) == (DEMO_NAME, DEMO_NOTICE, [4, 6])
    assert about["visual_tokens_per_image"] == 144


def test_the_sdk(server):
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
    content: Any = picture_and_text(REPOSITORY / "docs" / "shapes.png", "Describe the picture.")
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        extra_body={"compression": {"visual_tokens": 32}},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert "circle" in answer.choices[0].message.content
    assert answer.usage.model_extra["compression"]["visual_tokens"]["layer_average"] <= 32


def test_the_chat_example(server):
    picture = str(REPOSITORY / "docs" / "shapes.png")
    printed = run_example("chat.py", picture, QUESTION, "--base-url", f"{server.base_url}/v1")
    assert printed.split("\n") == [" orange", "31.25 of 144 visual tokens, averaged over layers", ""]


def test_the_comparing_example(server):
    picture = str(REPOSITORY / "docs" / "shapes.png")
    heading, *rows = run_example("compare_settings.py", picture, QUESTION, "--base-url", server.base_url).splitlines()
    presets = server.client.get("/v1/compression").json()["presets"]
    assert heading.split() == ["setting", "tokens", "KV", "cache", "FLOPs", "answer"]
    assert [row.split()[0] for row in rows] == list(presets)
    assert [float(row.split()[1]) for row in rows] == [
        pytest.approx(preset["layer_average"], abs=0.06) for preset in presets.values()
    ]
    assert {row.split()[4] for row in rows} == {"orange"}
    assert rows[0].split()[2:4] == ["100%", "100%"]
