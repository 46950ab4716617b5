"""Tests the basis of the rehearsals, in a separate process with a pretended device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch.nn.functional import scaled_dot_product_attention

pretended = pytest.mark.skipif("pretend_cuda" not in sys.modules, reason="runs inside test_a_pretended_device")


@pytest.mark.skipif("pretend_cuda" in sys.modules, reason="runs the others")
def test_a_pretended_device():
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, cwd=here.parents[1], stdout=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout


@triton.jit
def _add_kernel(source, target, size: tl.constexpr):
    places = tl.arange(0, size)
    tl.store(target + places, tl.load(target + places) + tl.load(source + places))


@pretended
def test_tensors_stay_on_the_cpu():
    assert torch.cuda.is_available()
    assert torch.cuda.get_device_capability() == (9, 0)
    tensor = torch.ones(2, device="cuda:0").to(torch.device("cuda")).cuda()
    assert tensor.device == torch.device("cpu")


@pretended
def test_a_replay_runs_operators_and_launches_but_no_python():
    source, total, runs = torch.zeros(8), torch.zeros(8), 0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runs += 1
        doubled = source.view(2, 4) * 2
        _add_kernel[(1,)](doubled, total, 8)
    assert total.tolist() == [0] * 8
    source += 1
    graph.replay()
    assert doubled.tolist() == [[2] * 4] * 2
    graph.replay()
    assert total.tolist() == [4] * 8
    assert runs == 1


@pretended
def test_a_capture_refuses_a_host_that_waits():
    numbers = torch.arange(3)
    with pytest.raises(RuntimeError, match="would wait"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        int(numbers[1])


@pretended
def test_attention_is_torchs_and_checks_its_lengths():
    from pretend_cuda.attention import unified_attention

    heads, kv_heads, size, block_size, counts, lengths = 4, 2, 8, 4, [3, 1], [6, 9]
    query = torch.randn(sum(counts), heads, size)
    cache = torch.randn(2, 8, block_size, kv_heads, size)
    pages = torch.tensor([[5, 2, 0], [1, 7, 3]], dtype=torch.int32)
    arguments = {
        "cu_seqlens_q": torch.tensor([0, 3, 4], dtype=torch.int32),
        "max_seqlen_q": 3,
        "seqused_k": torch.tensor(lengths, dtype=torch.int32),
        "softmax_scale": 0.5,
        "causal": True,
        "block_table": pages,
        "softcap": 0,
    }
    out = torch.empty_like(query)
    unified_attention(query, *cache, out, max_seqlen_k=9, **arguments)
    start = 0
    for blocks, count, length in zip(pages, counts, lengths, strict=True):
        key, value = (part[blocks].flatten(0, 1)[:length].transpose(0, 1) for part in cache)
        seen = torch.ones(count, length, dtype=torch.bool).tril(length - count)
        rows = query[start : start + count].transpose(0, 1)
        expected = scaled_dot_product_attention(rows, key, value, seen, scale=0.5, enable_gqa=True)
        torch.testing.assert_close(out[start : start + count], expected.transpose(0, 1))
        start += count
    with pytest.raises(AssertionError, match="longest=8"):
        unified_attention(query, *cache, out, max_seqlen_k=8, **arguments)
