from __future__ import annotations

import io
import re
import time
import tracemalloc
import zlib
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.image import convert_image_mode
from vllm.multimodal.media import ImageMediaIO

from duet_server.api.errors import RequestRefusedError
from duet_server.api.options import ServerOptions
from duet_server.api.protection.pictures import read_picture
from tests.api.protection.made_pictures import (
    ADOBE_PRIMARIES,
    chunk,
    encoded,
    gamma_curve,
    photo,
    png,
    rgb_profile,
    tiff_of_strips,
    with_chunks,
)

OPTIONS = ServerOptions.from_args(Namespace())
READER = ImageMediaIO()
ORDINARY = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
    "AVIF": ("L", "RGB", "RGBA"),
}
FILES = {f"{name} {mode}": encoded(photo(mode), name) for name, modes in ORDINARY.items() for mode in modes}
FILES |= {
    "PNG L, one value transparent": encoded(photo("L"), "PNG", transparency=100),
    "PNG P, one entry transparent": encoded(photo("P"), "PNG", transparency=3),
    "PNG P, entries half transparent": encoded(photo("P"), "PNG", transparency=bytes(range(256))),
    "GIF P, one entry transparent": encoded(photo("P"), "GIF", transparency=3),
    "PNG RGB, interlaced": encoded(photo(), "PNG", bits=8, optimize=True),
    "JPEG RGB, progressive": encoded(photo(), "JPEG", progressive=True),
    "TIFF RGB, LZW": encoded(photo(), "TIFF", compression="tiff_lzw"),
    "TIFF RGB, JPEG": encoded(photo(), "TIFF", compression="jpeg"),
    **{
        f"{name}, animated": encoded(photo(), name, save_all=True, append_images=[photo().rotate(90)])
        for name in ("PNG", "GIF", "WEBP", "TIFF", "AVIF")
    },
}


def read(data, reader=READER, **changes):
    return read_picture(data, reader, replace(OPTIONS, **changes))


def refusal(data, **changes):
    with pytest.raises(RequestRefusedError) as refused:
        read(data, **changes)
    assert refused.value.parameter == "image_url"
    return str(refused.value)


def key_of(picture):
    return MultiModalHasher.hash_kwargs("blake3", image=picture)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_ordinary_pictures_are_as_in_vllm(data):
    for settings_of_reader in ({}, {"rgba_background_color": (10, 20, 30)}, {"image_mode": None}, {"image_mode": "L"}):
        reader = ImageMediaIO(**settings_of_reader)
        ours, vllms = read(data, reader), reader.load_bytes(data)
        assert (ours.media.mode, ours.media.size) == (vllms.media.mode, vllms.media.size)
        assert (np.asarray(ours.media) == np.asarray(vllms.media)).all()
        assert ours.media.getpalette() == vllms.media.getpalette()
        assert (ours.original_bytes, ours.io_config) == (data, vllms.io_config)
        assert key_of(ours) == key_of(vllms)


def test_keys_differ_whenever_pictures_do():
    pictures = [read(data) for data in FILES.values()]
    pictures += [read(FILES["PNG RGBA"], ImageMediaIO(rgba_background_color=(0, 0, level))) for level in range(3)]
    profile = rgb_profile(ADOBE_PRIMARIES, gamma_curve(2.2))
    pictures += [read(encoded(photo(), "PNG", icc_profile=profile)), read(encoded(photo("I;16"), "PNG"))]
    keys = [key_of(picture) for picture in pictures]
    assert len(set(keys)) == len(set(FILES.values())) + 5
    assert keys[: len(FILES)] == [key_of(read(data)) for data in FILES.values()]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])  # vLLM's reader shows the colour of RGB
def test_transparency_by_palette_or_colour_looks_as_an_alpha_channel_does(mode):
    picture, key = Image.new("RGB", (6, 1), (9, 9, 9)).convert(mode), {"P": 1, "L": 200, "RGB": (200, 10, 10)}[mode]
    if mode == "P":
        picture.putpalette([9, 9, 9, 200, 10, 10])
        picture.paste(0, (0, 0, 6, 1))
    picture.paste(key, (0, 0, 3, 1))
    pixels = np.asarray(read(encoded(picture, "PNG", transparency=key)).media)[0]
    assert pixels.tolist() == [[255, 255, 255]] * 3 + [[9, 9, 9]] * 3


def pillow_shows(data):
    """What Pillow shows by itself, with a decode that swallows nothing; None if it raises."""
    try:
        picture = Image.open(io.BytesIO(data), formats=list(ORDINARY))
        picture.load()
    except Exception:
        return None
    with suppress(Exception):  # viewers pass over broken EXIF
        picture = ImageOps.exif_transpose(picture)
    return convert_image_mode(picture.convert("RGBA") if picture.has_transparency_data else picture, "RGB")


DAMAGE = {
    "cut off": lambda data, place, byte: data[:place],
    "one byte changed": lambda data, place, byte: data[:place] + bytes([data[place] ^ byte]) + data[place + 1 :],
    "zeros in the middle": lambda data, place, byte: data[:place] + bytes(byte) + data[place + byte :],
    "bytes missing": lambda data, place, byte: data[:place] + data[place + byte :],
    "zeros behind": lambda data, place, byte: data + bytes(place * byte),
}


@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(
    data=st.sampled_from([*FILES.values(), encoded(Image.new("RGB", (8, 8), "red"), "PNG", transparency=(255, 0, 0))]),
    damage=st.sampled_from(list(DAMAGE.values())),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(1, 255),
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture_is_shown_as_pillow_shows_it_or_refused(data, damage, place, byte):
    damaged = damage(data, int(len(data) * place), byte)
    expected = pillow_shows(damaged)
    try:
        picture = read(damaged).media
    except RequestRefusedError as refused:
        picture, told = None, str(refused)
    if picture is None or expected is None:
        assert picture is None
        assert expected is None or re.search(r"\d+x\d+ pixels|mode \w+", told)
    else:
        assert (np.asarray(picture) == np.asarray(expected)).all()


@pytest.mark.parametrize("name", ["PNG RGB", "GIF P", "PNG RGB, interlaced"])
def test_damaged_pixels_are_not_answered_as_black(name):
    """vLLM's reader swallows this error and shows the rest in black."""
    data = FILES[name]
    start = data.index(b"IDAT") + 40 if "PNG" in name else len(data) // 2
    damaged = data[:start] + bytes(60) + data[start + 60 :]
    assert pillow_shows(damaged) is None
    message = refusal(damaged)
    assert message == (
        f"image_url is {name[:3]} of {len(damaged)} bytes, "
        f"expected a {name[:3]} file that is complete, undamaged and of a usual kind."
    )


@pytest.mark.parametrize("name", ["JPEG RGB", "PNG RGB", "BMP RGB", "TIFF RGB", "WEBP RGB", "GIF P", "AVIF RGB"])
def test_cut_off_files_are_refused_whatever_a_library_has_set(name, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = FILES[name]
    assert f"a {name.split()[0]} file that is complete" in refusal(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("file_format", [*ORDINARY, "MPO"])
def test_formats_of_the_web_and_of_cameras_are_accepted(file_format):
    assert read(encoded(photo(), file_format)).media.size == (40, 30)


@pytest.mark.parametrize("file_format", ["PPM", "PCX", "ICO", "TGA"])
def test_other_formats_are_accepted_only_without_the_list(file_format):
    data = encoded(photo(), file_format)
    assert refusal(data) == (
        f"image_url is {len(data)} bytes, expected a picture in one of PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF."
    )
    read(data, media_formats=None)


def test_formats_that_start_a_program_are_always_refused():
    assert "expected a picture in one of" in refusal(encoded(photo(), "EPS"), media_formats=None)


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"GIF", b"RIFF\0\0\0\0WAVE", bytes(5000)])
def test_data_that_is_no_picture_is_told_which_formats_are(data):
    assert f"is {len(data)} bytes, expected a picture in one of PNG" in refusal(data)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"II*\0\x08\0\0\0"])
@pytest.mark.filterwarnings("ignore")
def test_a_format_that_is_accepted_is_named(data):
    assert re.search(
        rf"is (PNG|GIF|JPEG|TIFF) of {len(data)} bytes, expected a \1 file that is complete", refusal(data)
    )


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_that_cannot_be_shown_is_named(mode):
    assert refusal(encoded(Image.new(mode, (8, 8)), "TIFF")) == (
        f"image_url is mode {mode}, expected a picture of 8 bits a channel, or a grey PNG or TIFF of 16."
    )


def png_header(width, height):
    """A PNG whose header names this size, without any pixels."""
    return png((width, height), 1, 0, [])


def test_pixels_are_counted_before_they_are_decoded():
    whole = "a PNG file that is complete"
    assert whole in refusal(png_header(6000, 5000))
    assert refusal(png_header(6000, 5001)) == "image_url is 6000x5001 pixels, expected at most 30000000 pixels."
    assert whole in refusal(png_header(6000, 5001), media_max_pixels=None)


@pytest.mark.parametrize("max_pixels", [30_000_000, None])
def test_pictures_above_pillows_limit_are_a_client_error(max_pixels):
    message = refusal(png_header(100_000, 100_000), media_max_pixels=max_pixels)
    assert f"expected at most {max_pixels or 178956970} pixels" in message


def test_vllms_own_cap_on_pixels_holds(monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    for max_pixels in (None, 2000):
        assert refusal(FILES["PNG RGB"], media_max_pixels=max_pixels).endswith("expected at most 1000 pixels.")


@pytest.mark.parametrize("size", [(1, 201), (20_000, 1)])
def test_very_narrow_pictures_are_refused(size):
    data = encoded(Image.new("L", size), "PNG")
    assert "expected no side longer than 200 times the other" in refusal(data)
    assert read(data, media_max_aspect_ratio=None).media.size == size


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
def test_narrow_pictures_are_read(size):
    assert read(encoded(Image.new("L", size), "PNG")).media.size == size


BOMB = zlib.compress(bytes(50 << 20), 9)
METADATA = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + BOMB),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + BOMB),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + BOMB),
    "both": chunk(b"iCCP", b"profile\0\0" + BOMB) + chunk(b"zTXt", b"workflow\0\0" + BOMB),
    "many": b"".join(chunk(b"zTXt", b"%d\0\0" % idx + zlib.compress(bytes(1 << 20))) for idx in range(70)),
    "pieces": chunk(b"tEXt", b"a\0b") * 5000,
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("where", ["before", "behind"])
def test_metadata_that_unpack_to_much_are_passed_over(metadata, where):
    whole = FILES["PNG RGB"]
    data = with_chunks(whole, metadata) if where == "before" else whole[:-12] + metadata + whole[-12:]
    tracemalloc.start()
    start = time.thread_time()
    picture = read(data)
    assert time.thread_time() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert (np.asarray(picture.media) == np.asarray(photo())).all()


def test_the_colours_stay_right_without_the_text():
    info = PngInfo()
    info.add_text("workflow", "x" * 1_100_000, zip=True)
    profile = rgb_profile(ADOBE_PRIMARIES, gamma_curve(2.2))
    with_text, without = (encoded(photo(), "PNG", icc_profile=profile, pnginfo=extra) for extra in (info, None))
    assert (np.asarray(read(with_text).media) == np.asarray(read(without).media)).all()
    assert (np.asarray(read(without).media) != np.asarray(photo())).any()


def test_a_file_of_too_many_parts_is_told_so():
    data = tiff_of_strips(70_000)
    assert refusal(data) == f"image_url is TIFF of {len(data)} bytes, expected a TIFF of at most 65536 strips or tiles."
    jpeg = FILES["JPEG RGB"]
    data = jpeg[:2] + b"\xff\xe1\0\x0aExif\0\0" * 5000 + jpeg[2:]
    assert "expected a file in fewer parts, such as one without metadata" in refusal(data)
