from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from tests.api.stand_in import image_part, stand_in_server, user


def client_of(checkpoint, *flags):
    server = asyncio.run(stand_in_server(checkpoint, "--served-model-name", "demo", *flags))
    return TestClient(server.app, raise_server_exceptions=False)


def with_images(client, num_images, path="/v1/chat/completions", **fields):
    message = user(*[image_part()] * num_images, "What is it?")
    if path == "/v1/messages":
        data = image_part()["image_url"]["url"].partition("base64,")[2]
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
        message = user(*[image] * num_images, "What is it?")
    body = {"messages": [message]}
    if path == "/v1/responses":
        image = {"type": "input_image", "image_url": image_part()["image_url"]["url"]}
        text = {"type": "input_text", "text": "What is it?"}
        body = {"input": [{"role": "user", "content": [image] * num_images + [text]}]}
    return client.post(path, json={"model": "demo", "max_tokens": 2, "max_output_tokens": 2, **body, **fields})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"])
def test_more_pictures_than_the_cap_are_refused(path, checkpoint):
    client = client_of(checkpoint, "--duet-max-images", "2")
    assert with_images(client, 2, path).status_code == 200
    answer = with_images(client, 3, path)
    assert answer.status_code == 400
    assert "At most 2 image(s) may be provided in one prompt." in answer.json()["error"]["message"]


def test_limit_mm_per_prompt_takes_precedence(checkpoint):
    client = client_of(checkpoint, "--duet-max-images", "2", "--limit-mm-per-prompt", '{"image": 3}')
    assert with_images(client, 3).status_code == 200
    assert with_images(client, 4).status_code == 400


def test_without_a_cap_any_number_of_pictures_is_accepted(checkpoint):
    client = client_of(checkpoint, "--duet-max-images", "off")
    assert with_images(client, 17, compression={"visual_tokens": 32}).status_code == 200


def test_the_default_cap_is_16_pictures(client):
    answer = with_images(client, 17)
    assert answer.json()["error"]["message"].startswith("At most 16 image(s)")
