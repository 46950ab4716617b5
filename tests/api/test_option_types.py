from __future__ import annotations

import re
from argparse import ArgumentTypeError

import pytest

from duet_server.api import option_types


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        ("switch", "on", True),
        ("switch", "OFF", False),
        ("cap", "32", 32),
        ("cap", "0", None),
        ("cap", "off", None),
        ("bytes", "100", 100),
        ("bytes", "2k", 2048),
        ("bytes", "32M", 32 << 20),
        ("bytes", "1G", 1 << 30),
        ("bytes", "0", None),
        ("bytes", "off", None),
        ("networks", "", ()),
        ("formats", "png, Jpeg", ("PNG", "JPEG")),
        ("formats", "off", None),
    ],
)
def test_values_are_parsed(parse, text, value):
    assert getattr(option_types, f"parse_{parse}")(text) == value


def test_networks_are_parsed():
    parsed = option_types.parse_networks("10.0.0.0/8, fd00::/8,127.0.0.2")
    assert [str(network) for network in parsed] == ["10.0.0.0/8", "fd00::/8", "127.0.0.2/32"]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        ("switch", "maybe"),
        ("cap", "-1"),
        ("cap", "1.5"),
        ("cap", ""),
        ("bytes", "32T"),
        ("bytes", "M"),
        ("bytes", "1KM"),
        ("networks", "10.0.0.1/8"),
        ("networks", "internal.test"),
        ("formats", ""),
        ("formats", " , "),
        ("formats", "off,png"),
        ("formats", "jpg"),
        ("formats", "png,eps"),
    ],
)
def test_an_invalid_value_is_named(parse, text):
    with pytest.raises(ArgumentTypeError, match=f"^{re.escape(repr(text))} is "):
        getattr(option_types, f"parse_{parse}")(text)


def test_all_formats_are_named_if_one_is_unknown():
    with pytest.raises(ArgumentTypeError, match=r"^'jpg' is neither off nor a list of AVIF, .*JPEG, .*, XVTHUMB$"):
        option_types.parse_formats("jpg")
