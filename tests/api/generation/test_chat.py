"""Chat completions from HTTP to the engine and back, with a stand-in engine."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest
from starlette.testclient import TestClient

from duet_server.plan import guiding_rows, make_layout
from tests.api.stand_in import ANSWER, QUESTION, image_part, user

TEXT_ONLY = user("Is it warm?")


def events(response):
    """A stream's chunks, decoded; the last event must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def engine_keys(call):
    return {key: value for key, value in (call.params.extra_args or {}).items() if key.startswith("duet_")}


@pytest.mark.parametrize(
    "field", [{}, {"compression": None}, {"compression": "off"}, {"compression": {"keep": [1, 1]}}]
)
def test_off_leaves_the_engine_request_untouched(chat, server, field):
    response = chat(**field)
    assert response.status_code == 200, response.text
    assert server.last_call.params.extra_args is None
    assert [end - start for start, end in server.last_call.spans] == [576]
    assert response.json()["usage"]["compression"]["reduction"] == 0.0


def test_aggressive_fills_both_stages(chat, server):
    response = chat(user(image_part("purple"), "What color?"), compression="aggressive")
    assert response.status_code == 200, response.text
    call = server.last_call
    (span,) = call.spans
    assert span[1] - span[0] == 102
    assert engine_keys(call)["duet_held"] == [102, 51, 0]
    assert engine_keys(call)["duet_guide"] == "salient"
    assert [segment.num_visual_tokens for segment in call.plan.segments] == [102, 51, 0]
    assert call.prompt["mm_kwargs"]["image"][0]["duet_units_image"].data.tolist() == [[24, 24, 72, 30, 4]]


def test_the_users_salient_words_are_the_guiding_rows(chat, server):
    chat(compression="aggressive")
    call = server.last_call
    tokenizer = server.engine.renderer.get_tokenizer()
    guided = [tokenizer.decode([call.prompt["prompt_token_ids"][row]]) for row in engine_keys(call)["duet_salient"]]
    assert "".join(guided) == "Whatcolorcircle?"
    layout = make_layout(len(call.prompt["prompt_token_ids"]), call.spans)
    assert call.plan.guiding_rows == guiding_rows(layout, "salient", engine_keys(call)["duet_salient"])


@pytest.mark.parametrize("key", ["guide", "text"], ids=["by its name", "by its old name"])
@pytest.mark.parametrize("guide", ["all", "last"])
def test_guides_all_and_last_send_no_rows(chat, server, guide, key):
    usage = chat(compression={"preset": "light", key: guide}).json()["usage"]["compression"]
    assert usage["settings"]["guide"] == guide
    assert engine_keys(server.last_call) == {"duet_held": [307, 153, 0], "duet_guide": guide}


def test_stage1_alone_sets_no_keep(chat, server):
    response = chat(user(image_part("orange"), "What?"), compression="visionzip")
    assert server.last_call.params.extra_args is None
    assert server.last_call.spans[0][1] - server.last_call.spans[0][0] == 64
    no_limit = 0
    assert server.last_call.prompt["mm_kwargs"]["image"][0]["duet_units_image"].data.tolist() == [
        [24, 24, 54, 10, no_limit]
    ]
    assert response.json()["usage"]["compression"]["settings"]["cluster_width"] is None


def test_stage2_alone_keeps_every_patch(chat, server):
    chat(compression={"keep": [0.5, 0.25]})
    assert [end - start for start, end in server.last_call.spans] == [576]
    assert [segment.num_visual_tokens for segment in server.last_call.plan.segments] == [576, 288, 144]


def test_images_separated_by_text_are_separate_pools(chat, server):
    response = chat(user(image_part("red"), "and", image_part("blue"), "which?"), compression="aggressive")
    usage = response.json()["usage"]["compression"]
    assert usage["visual_tokens"] == {"encoder": 1152, "stage1": 204, "segments": [204, 102, 0], "layer_average": 127.5}
    assert len(server.last_call.plan.layout.pools) == 2


def test_the_same_image_with_other_settings_is_another_cache_entry(chat, server):
    hashes = []
    for compression in ("aggressive", "light", "off", "aggressive"):
        chat(compression=compression)
        hashes += server.last_call.prompt["mm_hashes"]["image"]
    assert hashes[0] == hashes[3]
    assert len(set(hashes)) == 3


def test_usage_counts_what_entered_the_language_model(chat, server):
    usage = chat(compression="aggressive").json()["usage"]
    num_text = len(server.last_call.prompt["prompt_token_ids"]) - 102
    assert usage["prompt_tokens"] == num_text + 102
    compression = usage["compression"]
    assert compression["visual_tokens"]["layer_average"] == 63.75
    assert compression["reduction"] == 0.8893
    assert compression["kv_cache"] == {
        "token_layers": 4 * (num_text + 102) + 2 * (num_text + 51) + 2 * num_text,
        "token_layers_uncompressed": 8 * (num_text + 576),
    }
    assert compression["settings"] == {
        "dominant": 72,
        "contextual": 30,
        "cluster_width": 4,
        "keep": [0.5, 0.0],
        "guide": "salient",
        "preset": "aggressive",
    }


def test_text_only_accepts_compression_and_does_nothing(chat, server):
    response = chat(TEXT_ONLY, compression="aggressive")
    assert response.status_code == 200, response.text
    assert server.last_call.params.extra_args is None
    usage = response.json()["usage"]["compression"]
    assert usage["visual_tokens"]["encoder"] == 0
    assert usage["reduction"] == 0.0


def test_text_only_without_the_field_looks_like_vllm(chat):
    assert "compression" not in chat(TEXT_ONLY).json()["usage"]


def test_stream_reports_in_its_usage_chunk_only(chat):
    chunks = events(chat(compression="aggressive", stream=True, stream_options={"include_usage": True}))
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == ANSWER
    with_usage = [chunk for chunk in chunks if chunk.get("usage")]
    assert len(with_usage) == 1
    assert with_usage[0] is chunks[-1]
    assert chunks[-1]["choices"] == []
    full = chat(compression="aggressive").json()["usage"]
    assert chunks[-1]["usage"]["compression"] == full["compression"]
    assert chunks[-1]["usage"]["prompt_tokens"] == full["prompt_tokens"]


def test_stream_without_usage_reports_no_compression(chat):
    assert all(not chunk.get("usage") for chunk in events(chat(compression="light", stream=True)))


def test_several_choices_and_logprobs_still_work(chat, server):
    response = chat(compression="light", n=2, logprobs=True, top_logprobs=1, temperature=0.7)
    assert response.status_code == 200, response.text
    assert server.last_call.params.n == 2
    assert server.last_call.params.logprobs == 1
    assert response.json()["choices"][0]["logprobs"]["content"]


def test_clients_own_xargs_stay(chat, server):
    chat(compression="light", vllm_xargs={"mine": 3})
    assert server.last_call.params.extra_args["mine"] == 3
    assert server.last_call.params.extra_args["duet_held"] == [307, 153, 0]


def test_sagemaker_route_reads_the_field_too(chat, server):
    response = chat(path="/invocations", compression="aggressive")
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["compression"]["settings"]["preset"] == "aggressive"
    assert engine_keys(server.last_call)["duet_held"] == [102, 51, 0]


def refusal(response):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "BadRequestError"
    assert error["code"] in (400, "context_length_exceeded")
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("compression", "field", "says"),
    [
        ("nope", "compression", "one of off, light, balanced, aggressive, visionzip"),
        ("pyramiddrop", "compression", "needs the server's boundaries to include 2, 4, 6"),
        (5, "compression", "a preset's name or an object"),
        ({"reduction": 0.99}, "compression.reduction", "0 to 0.97"),
        ({"reduction": "much"}, "compression.reduction", "is 'much', expected a number"),
        ({"reduction": 0.5, "visual_tokens": 64}, "compression", "exactly one of"),
        ({"dominant": 600, "contextual": 5}, "compression.dominant", "from 1 to 572"),
        ({"keep": [0.5, 0.7]}, "compression.keep", "never rise"),
        ({"keep": [0.5]}, "compression.keep", "2 numbers"),
        ({"preset": "light", "color": "red"}, "compression.color", "only the fields preset"),
        ({"preset": "light", "guide": "some"}, "compression.guide", "all, salient, last"),
        ({"preset": "light", "text": "some"}, "compression.text", "all, salient, last"),
        ({"preset": "light", "guide": "all", "text": "last"}, "compression.text", "the same value as guide"),
        ({"dominant": 1, "contextual": 0, "keep": [0.0, 0.0]}, "compression", "a reduction of at most 0.97"),
    ],
)
def test_impossible_settings_are_refused_with_field_value_and_remedy(chat, server, compression, field, says):
    param, message = refusal(chat(compression=compression))
    assert param == field
    assert message.startswith(f"{field} is ")
    assert says in message
    assert server.engine.calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt_logprobs": 2}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
        ({"use_beam_search": True, "n": 2}, "use_beam_search"),
    ],
)
@pytest.mark.parametrize("compression", ["visionzip", "aggressive"])
def test_fields_that_exclude_compression_are_refused(chat, server, fields, param, compression):
    assert refusal(chat(compression=compression, **fields))[0] == param
    assert server.engine.calls == []


@pytest.mark.parametrize("fields", [{"prompt_logprobs": 1}, {"echo": True}])
def test_uncompressed_requests_keep_vllms_features(chat, fields):
    assert chat(**fields).status_code == 200


def test_precomputed_embeddings_are_not_compressed(chat, server):
    part = {"type": "image_embeds", "image_embeds": "AAAA"}
    param, message = refusal(chat(user(part, "What?"), compression="light"))
    assert param == "messages[0].content[0].image_embeds"
    assert message == f"{param} is 'AAAA', expected images only when images are compressed."
    assert server.engine.calls == []


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("compression", ["off", "aggressive", "visionzip"])
def test_a_length_is_an_upper_bound(chat, server, field, compression):
    """As without compression, vLLM cuts it to what is left of the context."""
    for length in (3_000, 4_096):
        usage = chat(compression=compression, **{field: length}).json()["usage"]
        assert server.last_call.params.max_tokens == min(length, 4096 - usage["prompt_tokens"])


def test_a_prompt_longer_than_an_engine_step_is_refused_in_words_that_clients_know(chat):
    long_question = user(image_part(), "why? " * 600)
    error = chat(long_question, compression="aggressive").json()["error"]
    assert error["param"] == "messages"
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 2048 tokens with stage 2 ")
    assert chat(long_question).status_code == 200
    assert chat(long_question, compression="visionzip").status_code == 200


LONG = user(image_part(), "why? " * 600)


@pytest.mark.parametrize("fields", [{"messages": [LONG]}, {"temperature": -1}, {"logprobs": True, "top_logprobs": 21}])
def test_images_of_a_refused_request_are_sent_again(chat, server, fields):
    """Otherwise, an engine with its own cache would get only the image's hash after the first, refused request."""
    setting, question = {"compression": "aggressive"}, user(image_part("green"), "What color is the circle?")
    refusal(chat(**{"messages": [question], **setting, **fields}))
    assert chat(question, **setting).status_code == 200
    assert server.last_call.prompt["mm_kwargs"]["image"][0] is not None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [QUESTION], "vllm_xargs": {"duet_keep": [1.0]}}),
        ("/v1/chat/completions", {"messages": [QUESTION], "mm_processor_kwargs": {"duet_stage1": [1, 2, 3]}}),
        ("/v1/chat/completions/batch", {"messages": [[QUESTION]], "mm_processor_kwargs": {"duet_stage1": [1, 2, 3]}}),
        ("/v1/completions", {"prompt": "a", "vllm_xargs": {"duet_keep": [1.0]}}),
        ("/v1/responses", {"input": "a", "vllm_xargs": {"duet_salient": [1]}}),
        ("/v1/messages", {"messages": [], "max_tokens": 1, "vllm_xargs": {"duet_guide": "all"}}),
        ("/invocations", {"messages": [QUESTION], "vllm_xargs": {"duet_keep": [1.0]}}),
    ],
)
def test_reserved_keys_are_refused_on_every_route(client, server, path, body):
    param, message = refusal(client.post(path, json={"model": "demo", **body}))
    assert param.split(".")[1].startswith("duet_")
    assert "use the compression field" in message
    assert server.engine.calls == []


def test_clients_may_not_send_processor_kwargs(chat, server):
    param, message = refusal(chat(mm_processor_kwargs={"do_resize": False}, compression="light"))
    assert param == "mm_processor_kwargs"
    assert "--trust-request-mm-kwargs" in message
    assert server.engine.calls == []


@pytest.fixture
def without_compression(server, monkeypatch):
    """The same server, but without compression of its model."""
    renderer = server.app.state.openai_serving_chat.online_renderer
    monkeypatch.setattr(renderer, "served", replace(renderer.served, shape=None))


@pytest.mark.usefixtures("without_compression")
def test_a_model_without_compression_is_served_as_by_vllm(chat, server):
    response = chat()
    assert response.status_code == 200
    assert "compression" not in response.json()["usage"]
    assert server.last_call.params.extra_args is None
    assert chat(compression="off").status_code == 200
    param, message = refusal(chat(compression="light"))
    assert param == "compression"
    assert "served without compression" in message
    assert refusal(chat(path="/v1/compression/plan"))[0] == "model"


def test_the_openai_sdk_sends_the_field_and_shows_the_usage(server):
    sdk = openai.OpenAI(base_url="http://testserver/v1", api_key="-", http_client=TestClient(server.app))
    answer = sdk.chat.completions.create(model="demo", messages=[QUESTION], extra_body={"compression": "light"})
    assert answer.usage.compression["settings"]["preset"] == "light"
    stream = sdk.chat.completions.create(
        model="demo",
        messages=[QUESTION],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"compression": {"visual_tokens": 64}},
    )
    assert [chunk.usage.compression["visual_tokens"]["stage1"] for chunk in stream if chunk.usage] == [102]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="demo", messages=[QUESTION], extra_body={"compression": "nope"})
    assert refused.value.param == "compression"


def test_a_prompt_that_loses_its_picture_is_refused(chat, server):
    response = chat(truncate_prompt_tokens=1)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "truncate_prompt_tokens"), response.text
    assert server.engine.calls == []


def test_a_part_whose_type_is_null_is_known_by_its_keys(chat, server):
    assert chat(user({**image_part(), "type": None}, "What is it?")).status_code == 200
    assert len(server.last_call.spans) == 1


def test_vllms_own_refusals_are_unchanged(chat):
    assert chat(model="other").status_code == 404
    assert refusal(chat(top_logprobs=3))[0] == "top_logprobs"
