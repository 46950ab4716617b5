"""Quantized weights and a quantized KV cache under both stages, as far as a CPU computes with them.

vLLM has no CPU kernel for FP8 weights without AMX, so those are not tested.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.checkpoints.quantized import write_quantized
from tests.checkpoints.qwen_vl import write_qwen_vl
from tests.engine.in_process import in_process_engine
from tests.engine.test_backbones import BOUNDARIES, FAMILIES, Served
from tests.oracle.families import QwenOracle

DUET = {"duet": {"boundaries": list(BOUNDARIES)}}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"stage1": (9, 3, 4)},
    {"keep": [0.5, 0.25]},
    {"keep": [0.7, 0.0], "guide": "last"},
    {"stage1": (14, 0, 4), "keep": [0.6, 0.0]},
]


def first_step(served: Served, ask: Any, output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the first token: the engine's and the oracle's."""
    expected = served.expected(ask).logits[0].log_softmax(dim=-1)
    return torch.tensor([output.logprobs[0][token].logprob for token in range(len(expected))]), expected


def round_inputs(decoder: Any) -> None:
    """Round what the layers' matrices multiply to 8 bits, with a scale for each row, as int8 weights need it."""

    def rounded(_module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        scale = args[0].abs().amax(dim=-1, keepdim=True) / 127
        return ((args[0] / scale).round() * scale,)

    for module in decoder.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)


@pytest.mark.parametrize(("method", "dtype"), [("awq", "float16"), ("gptq", "float16"), ("int8", "float32")])
def test_quantized_weights_are_the_weights_that_they_stand_for(tmp_path, method, dtype):
    """Compared with transformers on dequantized weights. The wrong tokens would differ by some tenths and more."""
    source = tmp_path / "source"
    source.mkdir()
    checkpoint = write_quantized(write_qwen_vl(source, "qwen3_vl"), tmp_path / "quantized", method)
    limits = {"image": 4, "video": 0}
    options = {"dtype": dtype, "limit_mm_per_prompt": limits, "additional_config": DUET, "block_size": 32}
    with in_process_engine(checkpoint, **options) as engine:
        served = Served(FAMILIES["qwen3_vl"], engine, QwenOracle(source))
        assert engine.core.vllm_config.quant_config is not None
        if method == "int8":
            round_inputs(served.oracle.decoder)
        asks = [
            served.ask(10 * seed, 2, sampling={"logprobs": -1}, **settings) for seed, settings in enumerate(SETTINGS)
        ]
        errors = []
        for ask, output in zip(asks, engine.generate(*asks), strict=True):
            found, expected = first_step(served, ask, output)
            errors.append((found - expected).abs().max().item())
        assert max(errors) < 0.15, errors


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="vLLM's FP8 KV cache on a CPU needs AVX512")
def test_an_fp8_kv_cache_holds_the_rows_of_the_segments(tmp_path, monkeypatch):
    """Its numbers are coarse. But they are the same for a request alone, in a batch and after a preemption."""
    family = FAMILIES["llava clip mistral"]
    checkpoint = family.write(tmp_path)
    with in_process_engine(checkpoint, kv_cache_dtype="fp8", additional_config=DUET, block_size=32) as engine:
        groups = engine.core.scheduler.kv_cache_config.kv_cache_groups
        assert {group.kv_cache_spec.dtype.itemsize for group in groups} == {1}
        served = Served(family, engine, family.oracle(checkpoint))
        asks = [
            served.ask(10 * seed, 2, sampling={"logprobs": -1}, **settings) for seed, settings in enumerate(SETTINGS)
        ]
        together = engine.generate(*asks)
        for ask, output in zip(asks, together, strict=True):
            assert torch.corrcoef(torch.stack(first_step(served, ask, output)))[0, 1] > 0.95
            assert engine.tokens(ask) == [list(output.token_ids)]
        ids = [engine.add(ask) for ask in asks]
        finished = {}
        for step in range(100):
            finished |= {output.request_id: output for output in engine.engine.step() if output.finished}
            if step == 4:
                assert engine.engine.reset_prefix_cache(reset_running_requests=True)
            if not engine.engine.has_unfinished_requests():
                break
        again = [list(finished[request_id].outputs[0].token_ids) for request_id in ids]
        assert again == [list(output.token_ids) for output in together]
