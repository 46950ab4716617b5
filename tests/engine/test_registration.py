"""Real configurations of vLLM, built without an engine: what the plugin sets in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from duet_server.engine import registration, supported
from tests.engine.test_supported import create_config, on_cpu

pytestmark = on_cpu

CONTEXT = 4096  # of the tiny checkpoint


@pytest.fixture
def on_cuda(monkeypatch):
    """A CUDA device on which the named backends cannot run, as far as vLLM's platform would say."""

    def pretend(*invalid: str) -> None:
        def get_attn_backend_cls(backend: Any, layer: Any) -> str:
            assert (layer.head_size, layer.kv_cache_dtype, layer.block_size) == (32, "auto", None)
            if backend.name in invalid:
                raise ValueError(f"{backend.name} is not valid")
            return "path.of.the.class"

        platform = SimpleNamespace(
            device_type="cuda", is_cpu=lambda: False, is_rocm=lambda: False, get_attn_backend_cls=get_attn_backend_cls
        )
        monkeypatch.setattr(registration, "current_platform", platform)
        monkeypatch.setattr(supported, "current_platform", platform)

    return pretend


@pytest.mark.parametrize(("invalid", "chosen"), [([], "FLASH_ATTN"), (["FLASH_ATTN"], "TRITON_ATTN")])
def test_the_first_backend_that_runs_is_chosen(on_cuda, invalid, chosen):
    on_cuda(*invalid)
    assert create_config().attention_config.backend.name == chosen


def test_no_backend_runs(on_cuda):
    on_cuda("FLASH_ATTN", "TRITON_ATTN")
    with pytest.raises(ValueError, match="FLASH_ATTN is not valid TRITON_ATTN is not valid"):
        create_config()


@pytest.mark.parametrize(
    "engine_args",
    [
        {"attention_backend": "TRITON_ATTN"},
        {"attention_config": {"backend_per_kind": {"full_attention": "TRITON_ATTN"}}},
    ],
    ids=["for all layers", "by kind"],
)
def test_a_named_backend_stays(on_cuda, engine_args):
    on_cuda()
    config = create_config(**engine_args)
    assert supported.named_backend(config).name == "TRITON_ATTN"
    assert config.attention_config.backend in (None, supported.named_backend(config))


def test_a_named_backend_without_segments_is_refused(on_cuda):
    on_cuda()
    expected = "--attention-backend is 'FLASHINFER', expected 'FLASH_ATTN' or 'TRITON_ATTN'."
    with pytest.raises(ValueError, match=expected):
        create_config(attention_backend="FLASHINFER")


def test_a_cpu_keeps_its_backend():
    assert create_config().attention_config.backend is None


def step_sizes(config: Any) -> tuple[int, int, int]:
    scheduler = config.scheduler_config
    return scheduler.max_num_batched_tokens, scheduler.max_num_encoder_input_tokens, scheduler.encoder_cache_size


RAISED = {"raise_step_tokens": True}  # what the command line says if the user names no size


@pytest.mark.parametrize(
    ("engine_args", "tokens"),
    [
        ({"additional_config": {"duet": RAISED}}, CONTEXT),
        ({"additional_config": {"duet": RAISED}, "max_model_len": 1024}, 2048),
        ({"additional_config": {"duet": RAISED | {"boundaries": []}}}, 2048),
        ({"additional_config": {"duet": RAISED}, "language_model_only": True}, 2048),
        ({"additional_config": {"duet": RAISED}, "max_num_scheduled_tokens": 512}, 2048),
        ({"max_num_batched_tokens": 1024}, 1024),
        ({}, 2048),
    ],
    ids=str,
)
def test_steps_hold_whole_prompts_by_default(caplog, engine_args, tokens):
    config = create_config(**engine_args)
    assert step_sizes(config) == (tokens,) * 3
    assert ("--max-num-batched-tokens" in caplog.text) is (tokens == CONTEXT)
    assert "raise_step_tokens" not in config.additional_config["duet"]


def test_the_default_has_a_limit(monkeypatch):
    monkeypatch.setattr(registration, "MOST_DEFAULT_STEP_TOKENS", 3000)
    assert step_sizes(create_config(additional_config={"duet": RAISED})) == (3000,) * 3


@pytest.mark.parametrize("engine_args", [{"language_model_only": True}, {"limit_mm_per_prompt": {"image": 0}}], ids=str)
def test_without_images_nothing_is_compressed(engine_args):
    config = create_config(additional_config={"duet": {"boundaries": [2, 4]}}, **engine_args)
    duet = config.additional_config["duet"]
    assert (duet["boundaries"], duet["served"]) == ([], None)
