from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from duet_server.api.errors import RequestRefusedError
from duet_server.api.options import ServerOptions
from duet_server.api.served_model import ServedModel, model_shape
from duet_server.plan import SettingsError, presets
from tests.plan.shapes import LLAVA_7B


def served(shape=LLAVA_7B, default="off", max_reduction=0.97):
    return ServedModel("m", shape, default, max_reduction, 2048, 2, None)


def test_settings_fall_back_to_the_default():
    assert served(default="light").resolve(None) == presets(LLAVA_7B)["light"]
    assert served(default="light").resolve("off").is_off


def test_refusals_carry_field_value_and_remedy():
    with pytest.raises(RequestRefusedError) as refused:
        served().resolve({"visual_tokens": 1000})
    assert (refused.value.reason, refused.value.parameter) == ("invalid_settings", "compression.visual_tokens")
    assert str(refused.value).startswith("compression.visual_tokens is 1000, expected a number from ")


def test_a_limit_hides_the_presets_beyond_it():
    assert list(served(max_reduction=0.7).describe()["presets"]) == ["off", "light"]


@pytest.mark.parametrize("name", ["off", "light", "aggressive"])
def test_described_presets_resolve(name):
    preset = served().describe()["presets"][name]
    assert served().resolve(name).segment_counts(576) == tuple(preset["segments"])


def test_a_model_without_compression_says_so():
    assert served(shape=None).describe() == {"model": "m", "supported": False}
    assert served(shape=None).resolve(None) is None
    with pytest.raises(RequestRefusedError) as refused:
        served(shape=None).resolve({"reduction": 0.5})
    assert refused.value.reason == "unsupported"


def test_a_default_is_refused_there_too():
    model_config = SimpleNamespace(served_model_name="m", hf_config=SimpleNamespace(), dtype=None, max_model_len=64)
    config = SimpleNamespace(
        model_config=model_config,
        additional_config={},
        cache_config=SimpleNamespace(cache_dtype="fp8"),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=1, max_num_scheduled_tokens=None),
    )
    assert ServedModel.from_config(config, ServerOptions.from_args(Namespace(duet_default="off"))).kv_dtype_bytes == 1
    with pytest.raises(SettingsError, match=r"^--duet-default is 'light', expected off"):
        ServedModel.from_config(config, ServerOptions.from_args(Namespace(duet_default="light")))


def test_the_shape_is_the_engines():
    """The engine puts it into the configuration, which passes through JSON."""
    duet = json.loads(json.dumps({"served": {"unit": "image"}, "shape": asdict(LLAVA_7B)}))
    assert model_shape(SimpleNamespace(additional_config={"duet": duet})) == LLAVA_7B


@pytest.mark.parametrize("duet", [{}, {"duet": {"other": 1}}, {"duet": {"served": None, "shape": asdict(LLAVA_7B)}}])
def test_a_model_that_the_engine_does_not_compress(duet):
    assert model_shape(SimpleNamespace(additional_config=duet)) is None
