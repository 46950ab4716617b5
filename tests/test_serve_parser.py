from __future__ import annotations

from dataclasses import fields

import pytest

from duet_server.api.options import ServerOptions
from duet_server.cli import parse_serve_args
from duet_server.serve_parser import as_text, unknown_variables

BAD = {"default": "{reduction", "log_format": "xml", "stall_timeout": "soon", "media_allow_networks": "10.0.0.1/8"}
TAKES_ANY_TEXT = {"media_formats"}  # Pillow checks its names itself
NAMES = [own.name for own in fields(ServerOptions) if own.name not in TAKES_ANY_TEXT]


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr("duet_server.logs.set_up_logging", lambda args: None)


@pytest.fixture
def complaint(capsys):
    """The error for these arguments: one line after the usage, with exit status 2."""

    def of(*words):
        with pytest.raises(SystemExit) as stop:
            parse_serve_args(["serve", "a/b", *words])
        assert stop.value.code == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        return shown.strip().splitlines()[-1]

    return of


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_value_is_told_with_where_it_stands(name, complaint, monkeypatch, tmp_path):
    text = BAD.get(name, "nonsense")
    flag, variable, config = f"duet-{name.replace('_', '-')}", f"DUET_{name.upper()}", tmp_path / "server.yaml"
    assert f"argument --{flag}: '{text}' is " in complaint(f"--{flag}", text)
    config.write_text(f"{flag}: '{text}'\n")
    assert f"argument --{flag}: '{text}' is " in complaint("--config", str(config))
    monkeypatch.setenv(variable, text)
    assert f"{variable} in the environment: '{text}' is " in complaint()


@pytest.mark.parametrize("key", ["duet-max-reductoin", "duet_max_reductoin"])
def test_an_unknown_key_or_flag_names_the_nearest(key, complaint, tmp_path):
    config = tmp_path / "server.yaml"
    config.write_text(f"{key}: 0.5\n")
    for words in (["--config", str(config)], [f"--config={config}"], [f"--{key}", "0.5"], [f"--{key}=0.5"]):
        assert complaint(*words).endswith("; did you mean --duet-max-reduction?")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), ("a: [", "cannot be read"), ("- a\n- b\n", "not a mapping"), ("\xff", "not a mapping")],
)
def test_a_file_that_holds_no_options_is_told(content, reason, complaint, tmp_path):
    config = tmp_path / "server.yaml"
    if content is not None:
        config.write_text(content)
    assert reason in complaint("--config", str(config))


def test_an_empty_file_says_nothing(tmp_path):
    (tmp_path / "server.yaml").write_text("# nothing\n")
    assert parse_serve_args(["serve", "a/b", "--config", str(tmp_path / "server.yaml")]).duet_default == "off"


@pytest.mark.parametrize(
    ("value", "text"), [(True, "on"), (False, "off"), (16, "16"), ([16, 24], "16,24"), ({"a": 0.5}, '{"a": 0.5}')]
)
def test_yaml_is_read_as_text(value, text):
    assert as_text(value) == text


def test_unknown_variables_are_told_and_a_services_are_not():
    known = ["DUET_DEFAULT", "DUET_MAX_N"]
    environment = {
        **dict.fromkeys(["DUET_DEFAULT", "PATH", "DUET_SERVER_SERVICE_HOST", "DUET_SERVER_PORT_8000_TCP_ADDR"]),
        **dict.fromkeys(["DUET_PORT", "DUET_SERVICE_PORT_HTTP", "DUET_DEFALT", "DUET_QQQQ"]),
    }
    assert list(unknown_variables(environment, known)) == [
        "DUET_DEFALT in the environment is not an option of this server; did you mean DUET_DEFAULT?",
        "DUET_QQQQ in the environment is not an option of this server",
    ]
