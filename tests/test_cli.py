from __future__ import annotations

import os
import subprocess
import sys

import pytest

from duet_server import cli
from duet_server.cli import CPU_KV_CACHE_BYTES, parse_serve_args, plugins_to_load, with_model
from duet_server.demo import DEMO_CHECKPOINT, DEMO_NAME

DEFAULT_STEPS = {"raise_step_tokens": True}  # tells the engine that the user named no size of a step


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """No DUET variables."""
    for name in list(os.environ):
        if name.startswith("DUET_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def run(*words):
    return subprocess.run([sys.executable, "-m", "duet_server.cli", *words], capture_output=True, text=True)


def test_version_names_vllms():
    from vllm.version import __version__ as vllm_version

    from duet_server import __version__

    finished = run("--version")
    assert finished.returncode == 0
    assert finished.stdout.split() == ["duet-server", __version__, "(vLLM", f"{vllm_version.split('+')[0]})"]


def test_help_names_the_command():
    assert "serve" in run("--help").stdout
    assert "serve" in run().stdout


def test_unknown_commands_are_an_error():
    finished = run("server")
    assert finished.returncode == 2
    assert "invalid choice: 'server'" in finished.stderr


def test_serve_help_shows_duets_flags():
    shown = run("serve", "--help=duet").stdout
    assert "--duet-boundaries" in shown
    assert "--duet-max-reduction" in shown


def test_bad_flags_stop_before_anything_is_loaded():
    finished = run("serve", "--duet-max-reduction", "2")
    assert finished.returncode == 2
    assert "'2' is not a number from 0 to 1" in finished.stderr


@pytest.mark.parametrize(
    ("allowed", "installed", "expected"),
    [
        (None, ["lora", "duet"], "lora,duet"),
        (None, [], "duet"),
        ("mine", ["lora", "duet"], "mine,duet"),
        ("duet,mine", [], "duet,mine"),
        ("", ["lora"], "duet"),
    ],
)
def test_plugins_of_the_user_stay(allowed, installed, expected):
    assert plugins_to_load(allowed, installed) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["serve"], ["serve", DEMO_NAME]),
        (["serve", "--port", "9"], ["serve", DEMO_NAME, "--port", "9"]),
        (["serve", "a/b", "--port", "9"], ["serve", "a/b", "--port", "9"]),
        (["serve", "--model", "a/b"], ["serve", "--model", "a/b"]),
        (["serve", "--model=a/b"], ["serve", "--model=a/b"]),
    ],
)
def test_the_demo_model_fills_in(words, expected):
    assert with_model(words) == expected


def test_without_a_model_the_demo_is_served():
    args = parse_serve_args(["serve"])
    assert args.model_tag == str(DEMO_CHECKPOINT)
    assert args.served_model_name == [DEMO_NAME]
    assert args.duet_default == "off"
    assert args.duet_max_reduction == 0.97
    assert args.additional_config == {"duet": DEFAULT_STEPS}


def test_the_demo_can_be_named():
    assert parse_serve_args(["serve", DEMO_NAME]).served_model_name == [DEMO_NAME]
    args = parse_serve_args(["serve", DEMO_NAME, "--served-model-name", "mine", "--dtype", "bfloat16"])
    assert (args.served_model_name, args.dtype) == (["mine"], "bfloat16")


def test_a_named_model_is_left_alone():
    args = parse_serve_args(["serve", "a/b"])
    assert args.model_tag == "a/b"
    assert args.served_model_name is None
    assert args.enforce_eager is False


def test_flags_reach_vllms_configuration():
    args = parse_serve_args(["serve", "a/b", "--duet-boundaries", "16,24", "--additional-config", '{"duet": {"x": 1}}'])
    assert args.additional_config == {"duet": {"x": 1, "boundaries": [16, 24]} | DEFAULT_STEPS}


def test_a_step_size_of_the_users_own_stays():
    args = parse_serve_args(["serve", "a/b", "--max-num-batched-tokens", "512"])
    assert (args.max_num_batched_tokens, args.additional_config) == (512, {"duet": {}})


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        (["--grpc"], {}, "--grpc is true, expected HTTP: the gRPC server neither compresses nor protects."),
        (
            [],
            {"VLLM_USE_RUST_FRONTEND": "1"},
            "VLLM_USE_RUST_FRONTEND is 1, expected 0: the Rust frontend neither compresses nor protects.",
        ),
        (
            [],
            {"VLLM_MEDIA_CONNECTOR": "mine"},
            "VLLM_MEDIA_CONNECTOR is 'mine', expected http: another connector loads pictures without this",
        ),
    ],
    ids=["gRPC", "Rust", "media connector"],
)
def test_what_would_bypass_duet_is_refused(monkeypatch, capsys, words, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse_serve_args(["serve", "a/b", *words])
    assert sentence in capsys.readouterr().err


def test_the_benchmarks_variable_is_known(monkeypatch, caplog):
    monkeypatch.setenv("DUET_COMMIT", "abc")
    monkeypatch.setenv("DUET_COMMITS", "abc")
    parse_serve_args(["serve", "a/b"])
    assert "DUET_COMMITS in the environment" in caplog.text
    assert "DUET_COMMIT in the environment" not in caplog.text


def test_the_environment_gives_defaults(monkeypatch):
    monkeypatch.setenv("DUET_BOUNDARIES", "3,5")
    monkeypatch.setenv("DUET_DEFAULT", '{"reduction": 0.5}')
    monkeypatch.setenv("DUET_MAX_REDUCTION", "0.6")
    args = parse_serve_args(["serve", "a/b"])
    assert args.additional_config == {"duet": {"boundaries": [3, 5]} | DEFAULT_STEPS}
    assert (args.duet_default, args.duet_max_reduction) == ({"reduction": 0.5}, 0.6)
    args = parse_serve_args(["serve", "a/b", "--duet-default", "light", "--duet-boundaries", "4"])
    assert args.additional_config == {"duet": {"boundaries": [4]} | DEFAULT_STEPS}
    assert args.duet_default == "light"


@pytest.mark.parametrize("boundaries", ["[16, 24]", "16,24", '"16,24"'])
def test_a_config_file_gives_the_same(tmp_path, boundaries):
    config = tmp_path / "server.yaml"
    config.write_text(f"duet-boundaries: {boundaries}\nduet-default:\n  reduction: 0.5\nduet-max-reduction: 0.6\n")
    args = parse_serve_args(["serve", "a/b", "--config", str(config)])
    assert args.additional_config == {"duet": {"boundaries": [16, 24]} | DEFAULT_STEPS}
    assert (args.duet_default, args.duet_max_reduction) == ({"reduction": 0.5}, 0.6)


def test_the_command_line_wins_over_the_config_file(tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("duet-boundaries: [16, 24]\nduet-default: light\n")
    args = parse_serve_args(
        ["serve", "a/b", "--config", str(config), "--duet-boundaries", "8", "--duet-default", "off"]
    )
    assert args.additional_config == {"duet": {"boundaries": [8]} | DEFAULT_STEPS}
    assert args.duet_default == "off"


def test_a_config_file_may_name_the_model(tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("model: a/b\nport: 8123\n")
    args = parse_serve_args(["serve", "--config", str(config)])
    assert (args.model_tag, args.model, args.port) == (None, "a/b", 8123)
    assert args.served_model_name is None


def test_a_config_file_without_model_serves_the_demo(tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("port: 8123\n")
    args = parse_serve_args(["serve", "--config", str(config)])
    assert args.served_model_name == [DEMO_NAME]
    assert args.port == 8123


@pytest.fixture
def on_cpu():
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("the defaults are those of a CPU")


@pytest.mark.usefixtures("on_cpu")
class TestOnCPU:
    def test_the_cache_is_modest_and_said_to_be(self, caplog):
        args = parse_serve_args(["serve", "a/b"])
        assert 0 < args.kv_cache_memory_bytes <= CPU_KV_CACHE_BYTES
        assert "--kv-cache-memory-bytes" in caplog.text

    def test_a_size_of_the_users_own_stays(self, monkeypatch):
        assert parse_serve_args(["serve", "a/b", "--kv-cache-memory-bytes", "7"]).kv_cache_memory_bytes == 7
        assert parse_serve_args(["serve", "a/b", "--gpu-memory-utilization", "0.3"]).kv_cache_memory_bytes is None
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        assert parse_serve_args(["serve", "a/b"]).kv_cache_memory_bytes is None

    @pytest.mark.parametrize(("native", "dtype"), [(True, "auto"), (False, "float32")])
    def test_emulated_bfloat16_is_avoided_and_said_to_be(self, monkeypatch, caplog, native, dtype):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
        monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "host", "6", "1", "x86_64")))
        assert parse_serve_args(["serve", "a/b"]).dtype == dtype
        assert ("float32" in caplog.text) is not native
        assert parse_serve_args(["serve", "a/b", "--dtype", "bfloat16"]).dtype == "bfloat16"


@pytest.mark.parametrize(("num_api_servers", "expected"), [(1, RuntimeError), (2, SystemExit)])
def test_the_end_of_one_of_several_processes_is_told_in_one_line(monkeypatch, num_api_servers, expected):
    from vllm.entrypoints.cli.serve import ServeSubcommand

    def cmd(args):
        raise RuntimeError("Engine core process EngineCore died unexpectedly.")

    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(cmd))
    monkeypatch.setattr(cli, "_set_up_environment", lambda: None)
    with pytest.raises(expected, match="EngineCore died unexpectedly") as ended:
        cli.serve(["serve", "--api-server-count", str(num_api_servers)])
    if expected is SystemExit:
        assert ended.value.code == "duet-server: Engine core process EngineCore died unexpectedly."
