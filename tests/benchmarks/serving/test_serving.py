from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from types import SimpleNamespace

import pytest

from benchmarks.serving import __main__ as serving
from benchmarks.serving.__main__ import Benchmark, Visit, parse_args
from benchmarks.serving.report import BUSY, TIMED, render


def measured(requests_per_second):
    return dict.fromkeys([*(name for name, *_ in TIMED), *BUSY], requests_per_second)


def benchmark(tmp_path, *words):
    (tmp_path / "checkpoint").mkdir()
    return Benchmark(parse_args([*words, "--output", str(tmp_path / "out" / "result.json")]), tmp_path / "checkpoint")


def test_a_gpu_has_other_defaults():
    cpu, gpu = parse_args([]), parse_args(["--gpu"])
    assert (cpu.model, cpu.concurrency, cpu.compile, cpu.time_limit) == ("small", [12], False, None)
    assert (gpu.model, gpu.concurrency, gpu.compile, gpu.block_size) == ("llava-1.5-7b", [1, 8, 32, 128], True, 16)


def test_named_options_override_the_defaults():
    args = parse_args(["--quick", "--gpu", "--concurrency", "2", "--no-compile", "--server-args", "--seed 3"])
    assert (args.concurrency, args.rounds, args.compile, args.server_args) == ([2], 1, False, ["--seed", "3"])


def test_both_servers_get_the_same_flags(tmp_path):
    words = benchmark(tmp_path, "--gpu", "--server-args", "--seed 3").flags(48 << 30).as_argv()
    assert "--enforce-eager" not in words
    assert words[-2:] == ["--seed", "3"]
    flags = dict(pairwise(words))
    assert (flags["--dtype"], flags["--load-format"]) == ("bfloat16", "dummy")
    assert (flags["--max-num-batched-tokens"], flags["--max-num-seqs"], flags["--block-size"]) == ("8192", "128", "16")


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serving", "--gpu"])
    monkeypatch.setattr(serving, "has_cuda", lambda: False)
    serving.main()
    assert capsys.readouterr().out.count("\n") == 1


def test_an_interrupted_run_keeps_what_it_has(tmp_path):
    run = benchmark(tmp_path, "--gpu", "--modes", "off", "light")
    run._keep()
    assert json.loads(run.args.output.read_text())["load"]["128"] == {}
    stock = {"pictures": measured(2.0), "text-light": measured(5.0)}
    run.visits["stock"].append(Visit((1000, 16), {128: stock, 8: stock}))
    run.visits["duet"].append(Visit((4000, 16), {128: {"off": measured(2.0), "light": measured(4.0)}, 8: {}}))
    run._keep()
    result = json.loads(run.args.output.read_text())
    assert result["load"]["128"]["light"]["requests_per_second"]["gain"] == 2.0
    assert result["load"]["8"] == {}
    assert result["modes"]["light"]["capacity"]["fits"]["duet"] > result["modes"]["light"]["capacity"]["fits"]["stock"]
    assert result["passes"]["duet"][0]["passes"]["128"]["off"] == measured(2.0)
    assert "128 in flight" in render(result)


@pytest.mark.parametrize(("elapsed", "has_time"), [(300.0, True), (500.0, False)])
def test_no_visit_starts_that_would_end_too_late(tmp_path, monkeypatch, elapsed, has_time):
    run = benchmark(tmp_path, "--gpu", "--time-limit", "540")
    run.visits["stock"].append(Visit((1000, 16), seconds=100.0))
    monkeypatch.setattr(serving.time, "monotonic", lambda: run.started + elapsed)
    assert run._has_time("stock") == has_time
    assert run._has_time("duet")


def test_every_mode_is_sent_to_duet_server_and_its_text_to_stock(tmp_path):
    run = benchmark(tmp_path, "--modes", "off", "light")
    assert [(load.name, load.compression) for load in run.loads("duet")] == [("off", "off"), ("light", "light")]
    assert [(load.name, load.has_picture) for load in run.loads("stock")] == [("pictures", True), ("text-light", False)]


def test_the_kv_cache_has_the_size_that_is_asked_for(tmp_path):
    run = benchmark(tmp_path, "--gpu", "--kv-gib", "1.5")
    assert dict(pairwise(run.result()["settings"]["flags"]))["--kv-cache-memory-bytes"] == str(3 << 29)
    assert (parse_args(["--gpu"]).kv_gib, parse_args([]).kv_gib) == (48, 2)


def test_runs_with_one_model_folder_serve_the_same_path(tmp_path, monkeypatch):
    """The path is a key of vLLM's compile cache, so it must not depend on the folder in which a run starts."""
    monkeypatch.chdir(tmp_path)
    paths = [Benchmark(parse_args(["--model-dir", "model"]), tmp_path / name).checkpoint for name in ("one", "other")]
    assert paths == [tmp_path / "model"] * 2
    assert (tmp_path / "model" / "config.json").exists()


def test_prewarming_starts_each_server_once_and_measures_nothing(tmp_path, monkeypatch):
    started = []

    @contextlib.contextmanager
    def running_server(kind, flags, log):
        started.append((kind, flags.checkpoint, flags.kv_cache_bytes, list(flags.more)))
        yield None

    words = [
        "--prewarm",
        "--model-dir",
        str(tmp_path / "model"),
        "--kv-gib",
        "2",
        "--output",
        str(tmp_path / "kept.json"),
    ]
    monkeypatch.setattr("sys.argv", ["serving", *words, "--server-args", "--gpu-memory-utilization 0.3"])
    monkeypatch.setattr(serving, "running_server", running_server)
    serving.main()
    more = ["--gpu-memory-utilization", "0.3"]
    assert started == [(kind, tmp_path / "model", 2 << 30, more) for kind in ("stock", "duet")]
    assert not (tmp_path / "kept.json").exists()


def test_prewarming_a_folder_that_goes_away_is_refused(capsys):
    with pytest.raises(SystemExit) as refusal:
        parse_args(["--prewarm"])
    assert refusal.value.code == 2
    assert "--model-dir" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "compiled"), [("--compile", True), ("--no-compile", False)])
def test_stages_are_timed_in_an_engine_like_the_servers(tmp_path, monkeypatch, word, compiled):
    commands = []

    def run_stages(command, **_):
        commands.append(command)
        return SimpleNamespace(stdout=json.dumps({"compiled": compiled, "shares": {"light": {"stage1": 0.01}}}))

    run = benchmark(tmp_path, word, "--modes", "off", "light")
    monkeypatch.setattr(serving.subprocess, "run", run_stages)
    run._time_stages()
    assert ("--compile" in commands[0]) == compiled
    assert commands[0][commands[0].index("--model-dir") + 1] == str(run.checkpoint)
    assert run.stages == {"light": {"stage1": 0.01}}
