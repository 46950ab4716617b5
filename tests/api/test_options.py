from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from dataclasses import fields
from ipaddress import ip_network

import pytest

from duet_server.api.option_types import parse_seconds
from duet_server.api.options import ServerOptions, parse_boundaries, parse_default, parse_max_reduction
from duet_server.cli import parse_serve_args

NETWORKS = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
# Every option: its text on the command line and in the environment, its text in a YAML file, and its value.
EXAMPLES = {
    "default": ('{"reduction": 0.5}', "{reduction: 0.5}", {"reduction": 0.5}),
    "max_reduction": ("0.6", "0.6", 0.6),
    "media_public_only": ("off", "off", False),
    "media_allow_networks": ("10.0.0.0/8,fd00::/8", "[10.0.0.0/8, 'fd00::/8']", NETWORKS),
    "media_max_download": ("1M", "1M", 1 << 20),
    "media_max_data_url": ("off", "off", None),
    "media_max_pixels": ("1000", "1000", 1000),
    "media_max_aspect_ratio": ("7", "7", 7),
    "media_formats": ("PNG,JPEG", "[PNG, JPEG]", ("PNG", "JPEG")),
    "max_images": ("0", "0", None),
    "max_n": ("3", "3", 3),
    "max_body": ("5k", "5k", 5 << 10),
    "trust_uuids": ("on", "true", True),
    "guard_all_routes": ("off", "false", False),
    "plain_errors": ("off", "no", False),
    "playground": ("off", "off", False),
    "stall_timeout": ("2.5", "2.5", 2.5),
    "log_format": ("json", "json", "json"),
}
NAMES = [own.name for own in fields(ServerOptions)]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """Without DUET's variables, and without changes to this process's logging."""
    for name in NAMES:
        monkeypatch.delenv(f"DUET_{name.upper()}", raising=False)
    monkeypatch.setattr("duet_server.logs.set_up_logging", lambda args: None)


def parsed(*words):
    return ServerOptions.from_args(parse_serve_args(["serve", "a/b", *words]))


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_flag_a_key_and_a_variable(name, monkeypatch, tmp_path):
    text, yaml, value = EXAMPLES[name]
    flag, variable, config = f"duet-{name.replace('_', '-')}", f"DUET_{name.upper()}", tmp_path / "server.yaml"
    assert getattr(parsed(), name) != value
    assert getattr(parsed(f"--{flag}", text), name) == value
    config.write_text(f"{flag}: {yaml}\n")
    assert getattr(parsed("--config", str(config)), name) == value
    monkeypatch.setenv(variable, text)
    assert getattr(parsed(), name) == value
    assert getattr(ServerOptions.from_args(Namespace()), name) == value  # under vLLM's own command


def test_flags_win_over_keys_and_keys_over_variables(monkeypatch, tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text("duet-max-reduction: 0.2\n")
    monkeypatch.setenv("DUET_MAX_REDUCTION", "0.1")
    assert parsed("--config", str(config), "--duet-max-reduction", "0.3").max_reduction == 0.3
    assert parsed("--config", str(config)).max_reduction == 0.2
    assert parsed().max_reduction == 0.1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("light", "light"),
        (" balanced ", "balanced"),
        ('{"reduction": 0.5}', {"reduction": 0.5}),
        ('"aggressive"', "aggressive"),
    ],
)
def test_a_default_is_a_name_or_json(text, value):
    assert parse_default(text) == value


@pytest.mark.parametrize("text", ["{reduction", "[1, 2]"])
def test_a_default_that_is_neither_says_what_is_expected(text):
    with pytest.raises(ArgumentTypeError, match="expected a preset's name or a JSON object"):
        parse_default(text)


@pytest.mark.parametrize(("text", "layers"), [("16,24", [16, 24]), (" 2 , 3,", [2, 3]), ("", [])])
def test_boundaries_are_comma_separated(text, layers):
    assert parse_boundaries(text) == layers


@pytest.mark.parametrize("text", ["a", "1;2", "-1", "0.5"])
def test_boundaries_are_layer_indices(text):
    with pytest.raises(ArgumentTypeError, match="such as 16,24"):
        parse_boundaries(text)


@pytest.mark.parametrize("text", ["-0.1", "1.1", "much", "nan"])
def test_max_reduction_is_a_share(text):
    with pytest.raises(ArgumentTypeError, match="from 0 to 1"):
        parse_max_reduction(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_must_be_positive(text):
    with pytest.raises(ArgumentTypeError, match="seconds above 0"):
        parse_seconds(text)
