"""Pictures by https URL, from a host that the server has been told to trust."""

from __future__ import annotations

import pytest

from tests.golden_cases import golden_cases
from tests.serving.picture_host import picture_host
from tests.serving.running_server import chat, picture_and_text, token_ids

PICTURE = golden_cases("llava_mha")[2].picture_path
TEXT = "What color is the circle?"


@pytest.mark.parametrize("setting", ["off", "aggressive"])
def test_a_picture_by_url_is_the_picture(server, certificate, setting):
    with picture_host(PICTURE.parent, certificate) as url:
        image = {"type": "image_url", "image_url": {"url": f"{url}/{PICTURE.name}"}}
        answer = server.ask([image, {"type": "text", "text": TEXT}], compression=setting)
    inline = server.ask(picture_and_text(PICTURE, TEXT), compression=setting)
    assert token_ids(answer) == token_ids(inline)
    assert answer["usage"] == inline["usage"]


def test_a_url_without_a_file_is_refused(server, certificate):
    with picture_host(PICTURE.parent, certificate) as url:
        image = {"type": "image_url", "image_url": {"url": f"{url}/no-such.png"}}
        response = server.client.post("/v1/chat/completions", json=chat([image]))
    assert 400 <= response.status_code < 500, response.text
