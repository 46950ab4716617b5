"""Expected pixels are computed here from the values that the files hold."""

from __future__ import annotations

import io
import struct
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms

from duet_server.api.protection.pixels import UnshowableError, shown
from tests.api.protection.made_pictures import (
    ADOBE_PRIMARIES,
    SRGB_PRIMARIES,
    chunk,
    encoded,
    gamma_curve,
    grey_profile,
    grey_tiff,
    ink_profile,
    photo,
    png,
    rgb_profile,
    srgb_curve,
    with_chunks,
)


def shown_pixels(data, mode=None):
    picture = shown(Image.open(io.BytesIO(data)))
    return np.asarray(picture.convert(mode) if mode else picture).astype(int)


def deep(values):
    return Image.fromarray(np.array(values, dtype=np.uint16))


DEEP = [[0, 128, 129, 257, 32768, 65407, 65535]]  # 128 is 0.498 of a level, 129 is 0.502
LEVELS = [[0, 0, 1, 1, 128, 255, 255]]


@pytest.mark.parametrize(
    "data",
    [
        encoded(deep(DEEP), "PNG"),
        encoded(deep(DEEP), "TIFF"),
        encoded(Image.frombytes("I;16B", (7, 1), np.array(DEEP, dtype=">u2").tobytes()), "TIFF"),
        encoded(deep(DEEP), "TIFF", compression="tiff_lzw"),
        encoded(deep(DEEP), "TIFF", compression="tiff_adobe_deflate"),
    ],
    ids=["PNG", "TIFF, little-endian", "TIFF, big-endian", "TIFF, LZW", "TIFF, deflate"],
)
def test_grey_of_16_bits_is_scaled(data):
    assert shown_pixels(data).tolist() == LEVELS


def test_a_tiff_may_call_zero_white():
    data = grey_tiff(np.array(DEEP, dtype="<u2").tobytes(), (7, 1), 16, photometric=0)
    assert shown_pixels(data).tolist() == [[255 - level for level in LEVELS[0]]]


def test_grey_of_12_bits_is_scaled_by_its_own_white():
    data = grey_tiff(bytes.fromhex("000fff800010"), (4, 1), 12)  # 0, 4095, 2048, 16
    assert shown_pixels(data).tolist() == [[0, 255, 128, 1]]


@pytest.mark.parametrize("key", [0, 257, 65535])
def test_a_transparent_value_of_16_bits_is_exact(key):
    data = encoded(deep(DEEP), "PNG", transparency=key)
    picture = shown(Image.open(io.BytesIO(data)))
    assert picture.mode == "LA"
    assert np.asarray(picture)[0].tolist() == [
        [level, 0 if value == key else 255] for level, value in zip(LEVELS[0], DEEP[0], strict=True)
    ]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_value_of_few_bits_is_scaled_like_the_pixels(bits):
    white = 2**bits - 1
    row = bytes([(white << (8 - bits)) | (1 << (8 - 2 * bits)) if bits < 8 else 255])  # white, then 1
    data = png((1 if bits == 8 else 2, 1), bits, 0, [row], chunk(b"tRNS", bytes([0, white])))
    assert shown_pixels(data, "RGBA")[0, 0].tolist() == [255, 255, 255, 0]
    if bits in (2, 4):
        assert shown_pixels(data, "RGBA")[0, 1].tolist() == [255 // white] * 3 + [255]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "mode I"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "mode F"),
        (grey_tiff(bytes(32), (4, 4), 16, sample_format=2), "mode I"),
        (encoded(Image.new("F", (4, 4), 0.5), "TIFF", compression="tiff_lzw"), "mode F"),
    ],
    ids=["32 bits", "floating point", "signed", "floating point, LZW"],
)
def test_values_without_a_known_white_are_refused(data, value):
    with pytest.raises(UnshowableError) as refused:
        shown(Image.open(io.BytesIO(data)))
    assert refused.value.value == value


def test_a_transparent_colour_of_16_bits_is_refused():
    """Pillow keeps the upper bits only, so all nearly black pixels would be as transparent as the black ones."""
    data = png((1, 1), 16, 2, [bytes(6)], chunk(b"tRNS", bytes(6)))
    with pytest.raises(UnshowableError) as refused:
        shown(Image.open(io.BytesIO(data)))
    assert refused.value.value == "RGB of 16 bits with a transparent colour"
    assert shown_pixels(png((1, 1), 16, 2, [b"\x80\x7f" * 3])).tolist() == [[[128] * 3]]


@pytest.mark.parametrize(("mode", "stored"), [("LA", (50, 100)), ("RGBA", (50, 25, 100, 100))])
def test_alpha_that_is_multiplied_in_is_divided_out(mode, stored):
    file = encoded(Image.new(mode, (4, 4), stored), "TIFF")
    separate, multiplied_in = (struct.pack("<HHLL", 338, 3, 1, extra) for extra in (2, 1))
    assert separate in file
    pixel = shown_pixels(file.replace(separate, multiplied_in))[0, 0].tolist()
    assert pixel == [min(255, level * 255 // stored[-1]) for level in stored[:-1]] + [stored[-1]]


def test_lab_is_shown_in_colour():
    red = Image.new("LAB", (2, 2), (138, 209, 198))
    pixels = shown_pixels(encoded(red, "TIFF"))
    assert np.abs(pixels - [255, 0, 0]).max() <= 6


def srgb_of(pixels, primaries, curve):
    """Textbook arithmetic: the profile's curve and primaries, then sRGB's, backwards."""
    linear = np.clip(curve(np.asarray(pixels) / 255) @ np.array(primaries) @ np.linalg.inv(SRGB_PRIMARIES), 0, 1)
    return in_srgb(linear)


def in_srgb(linear):
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


ADOBE = rgb_profile(ADOBE_PRIMARIES, gamma_curve(2.2))


@pytest.mark.parametrize(
    ("mode", "file_format"), [*product(("RGB", "RGBA"), ("PNG", "TIFF", "WEBP")), *product("P", ("PNG", "TIFF"))]
)
def test_a_colour_profile_is_applied(mode, file_format):
    picture = photo("RGBA")
    picture.paste((200, 120, 60, 90), (0, 0, 20, 15))
    source = picture.quantize(16) if mode == "P" else picture.convert(mode)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = encoded(source, file_format, icc_profile=ADOBE, **options)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    result = shown(Image.open(io.BytesIO(data)))
    assert result.mode == ("RGB" if mode == "RGB" or (mode, file_format) == ("P", "TIFF") else "RGBA")
    expected = srgb_of(plain[..., :3], ADOBE_PRIMARIES, lambda level: level**2.2)
    assert np.abs(np.asarray(result)[..., :3] - expected).max() < 3
    assert np.abs(plain[..., :3] - expected).max() > 20  # the profile matters
    if result.mode == "RGBA":
        assert (np.asarray(result)[..., 3] == plain[..., 3]).all()


def test_a_profile_of_grey_is_applied():
    grey = photo("LA")
    data = encoded(grey, "PNG", icc_profile=grey_profile(gamma_curve(1.8)))
    expected = in_srgb((np.asarray(grey)[..., 0] / 255) ** 1.8)
    result = shown_pixels(data)
    assert np.abs(result[..., :3] - expected[..., None]).max() < 3
    assert (result[..., 3] == np.asarray(grey)[..., 1]).all()


def test_grey_of_16_bits_has_profiles_too():
    data = encoded(deep([[0, 0x8000, 0xFFFF]]), "PNG", icc_profile=grey_profile(gamma_curve(1.0)))
    assert np.abs(shown_pixels(data)[0] - np.array([[0], [188], [255]])).max() <= 2


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_a_profile_of_inks_is_applied(file_format):
    inks = Image.new("CMYK", (8, 8), (200, 100, 50, 0))
    data = encoded(inks, file_format, icc_profile=ink_profile((128, 128, 128)))
    assert np.abs(shown_pixels(data) - 119).max() <= 3  # L* of 50 is 119 in sRGB


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        rgb_profile(SRGB_PRIMARIES, srgb_curve()),
        rgb_profile([[round(number, 4) for number in column] for column in SRGB_PRIMARIES], srgb_curve()),
    ],
    ids=["of lcms", "by table", "rounded"],
)
def test_an_srgb_profile_changes_nothing(profile, mode):
    tagged, plain = (encoded(photo(mode), "PNG", **extra) for extra in ({"icc_profile": profile}, {}))
    assert (shown_pixels(tagged) == shown_pixels(plain)).all()
    assert shown(Image.open(io.BytesIO(tagged))).mode == mode


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b""),
        ("RGB", b"no profile"),
        ("RGB", ADOBE[:200]),
        ("RGB", ADOBE[:128] + bytes(len(ADOBE) - 128)),
        ("RGB", grey_profile(gamma_curve(1.0))),
        ("RGB", ink_profile((128, 128, 128))),
        ("L", ADOBE),
        ("CMYK", ADOBE),
        ("RGB", ADOBE + bytes(5 << 20)),
    ],
    ids=["empty", "words", "cut off", "zeros", "of grey", "of inks", "of RGB on grey", "of RGB on inks", "5 MiB"],
)
def test_a_profile_that_is_broken_or_not_for_these_channels_is_ignored(mode, profile):
    tagged, plain = (encoded(photo(mode), "JPEG", **extra) for extra in ({"icc_profile": profile}, {}))
    assert (shown_pixels(tagged) == shown_pixels(plain)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_pictures_stand_upright(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    picture = photo()
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(picture, file_format, exif=exif.tobytes(), **options)
    upright = picture if method is None else picture.transpose(method)
    assert (shown_pixels(data) == np.asarray(upright)).all()


def test_junk_instead_of_exif_is_ignored():
    data = with_chunks(encoded(photo(), "PNG"), chunk(b"eXIf", b"MM\0*" + b"\xff" * 60))
    assert (shown_pixels(data) == np.asarray(photo())).all()
