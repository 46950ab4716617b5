from __future__ import annotations

import base64
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet_server.api.protection.data_urls import DataUrlError, decode_base64, split_data_url


@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        ("data:image/png;base64,YQ==", "image/png"),
        ("DATA:image/png;BASE64,YQ==", "image/png"),
        ("data:;base64,YQ==", ""),
        ("data:image/png;charset=utf-8;base64,YQ==", "image/png"),
        ("data:image/png; base64 ,YQ==", "image/png"),
    ],
)
def test_the_kind_is_split_off(url, media_type):
    assert split_data_url(url) == (media_type, "YQ==")


@pytest.mark.parametrize(
    "url", ["data:", "data:image/png;base64", "data:,YQ==", "data:image/png,YQ==", "data:base64,YQ=="]
)
def test_a_url_without_base64_is_told_how_to_begin(url):
    with pytest.raises(DataUrlError) as refused:
        split_data_url(url)
    assert (refused.value.value, refused.value.expected) == (url, "data:image/png;base64, followed by base64")


def test_a_url_without_data_is_told_so():
    with pytest.raises(DataUrlError) as refused:
        split_data_url("data:image/png;base64,")
    assert refused.value.expected == "base64 after the comma"


@given(
    data=st.binary(min_size=1, max_size=60),
    num_missing=st.integers(0, 2),
    space=st.sampled_from(["", " ", "\n", "\r\n", "\t", "\f"]),
    every=st.integers(1, 80),
    is_escaped=st.booleans(),
)
def test_what_browsers_read_is_read(data, num_missing, space, every, is_escaped):
    """WHATWG: padding may be missing and ASCII white space may stand anywhere; URLs may be percent-encoded."""
    text = base64.b64encode(data).decode()
    text = text[: len(text) - min(num_missing, text.count("="))]
    text = space.join(re.findall(f".{{1,{every}}}", text)) + space
    assert decode_base64(quote(text, safe="") if is_escaped else text) == data


def test_escapes_may_be_written_in_small_letters():
    assert decode_base64("%2b%2fA%3d") == decode_base64("+/A=")


@pytest.mark.parametrize(
    ("text", "foreign"), [("iV-_", "-"), ("iVBO\u00e4", "?"), ("YQ==YQ==", "="), ("a%41", "%"), ("{}", "{")]
)
def test_a_foreign_character_is_named(text, foreign):
    with pytest.raises(DataUrlError) as refused:
        decode_base64(text)
    assert refused.value.value == f"base64 with {foreign}"
    assert refused.value.expected == "only A-Z, a-z, 0-9, + and /, and = at the end"


def test_base64_that_was_cut_off_is_told_so():
    with pytest.raises(DataUrlError) as refused:
        decode_base64("YWJjZ")
    assert (refused.value.value, refused.value.expected) == (
        "base64 of 5 characters",
        "at least one more character: it was cut off",
    )


def test_the_value_is_short():
    with pytest.raises(DataUrlError) as refused:
        split_data_url("data:image/png," + "A" * 10_000)
    assert len(refused.value.value) == 60
