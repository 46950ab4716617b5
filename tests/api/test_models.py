from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient
from vllm.lora.request import LoRARequest

from tests.api.stand_in import stand_in_server

NAMES = ("demo", "org/demo", "a b:c@1")
ADAPTER = "org/adapter/v1"


@pytest.fixture(scope="module")
def several(checkpoint):
    """A model with several names and an adapter."""
    server = asyncio.run(stand_in_server(checkpoint, "--served-model-name", *NAMES))
    models = server.app.state.openai_serving_models
    models.lora_requests[ADAPTER] = LoRARequest(ADAPTER, 1, "/adapter")
    return TestClient(server.app, raise_server_exceptions=False)


def constant(card):
    """A card without what vLLM makes anew for each answer."""
    return {name: value for name, value in card.items() if name not in ("created", "permission")}


@pytest.mark.parametrize("id", [*NAMES, ADAPTER])
def test_every_listed_model_can_be_asked_for(id, several):
    listed = {card["id"]: card for card in several.get("/v1/models").json()["data"]}
    assert set(listed) == {*NAMES, ADAPTER}
    answer = several.get(f"/v1/models/{id}")
    assert answer.status_code == 200
    assert answer.json().keys() == listed[id].keys()
    assert constant(answer.json()) == constant(listed[id])


@pytest.mark.parametrize("id", ["other", "demo/", "Demo", "org", "org%2Fdemo2"])
def test_any_other_name_is_not_found_and_the_served_names_are_told(id, several):
    answer = several.get(f"/v1/models/{id}")
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", "model_not_found")
    assert error["message"] == (
        f"The model `{id.replace('%2F', '/')}` does not exist. This server has `demo`, `org/demo`, `a b:c@1`,"
        " `org/adapter/v1`."
    )


def test_without_a_name_all_are_listed(several):
    assert {card["id"] for card in several.get("/v1/models/").json()["data"]} == {*NAMES, ADAPTER}


def test_openapi_describes_it(client):
    route = client.get("/openapi.json").json()["paths"]["/v1/models/{model_id}"]["get"]["responses"]
    schemas = {status: answer["content"]["application/json"]["schema"]["$ref"] for status, answer in route.items()
               if status in ("200", "404")}  # fmt: skip
    assert schemas == {
        "200": "#/components/schemas/ModelCard",
        "404": "#/components/schemas/ModelNotFoundResponse",
    }
