"""What the README shows of the demo model, on the server that starts when no model is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.robustness.small_server import FLAGS
from duet_server.demo import DEMO_NAME, DEMO_NOTICE
from tests.serving.running_server import RunningServer, picture_and_text, running_server

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
