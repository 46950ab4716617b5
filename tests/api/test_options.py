from __future__ import annotations

from argparse import ArgumentTypeError, Namespace

import pytest

from duet_server.api.options import ServerOptions, parse_boundaries, parse_default, parse_max_reduction


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


def test_flags_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("DUET_DEFAULT", "light")
    monkeypatch.setenv("DUET_MAX_REDUCTION", "0.5")
    assert ServerOptions.from_args(Namespace()) == ServerOptions(default="light", max_reduction=0.5)
    given = Namespace(duet_default="off", duet_max_reduction=0.0)
    assert ServerOptions.from_args(given) == ServerOptions(default="off", max_reduction=0.0)


def test_without_either_there_is_no_compression(monkeypatch):
    monkeypatch.delenv("DUET_DEFAULT", raising=False)
    monkeypatch.delenv("DUET_MAX_REDUCTION", raising=False)
    assert ServerOptions.from_args(Namespace()) == ServerOptions(default="off", max_reduction=0.97)
