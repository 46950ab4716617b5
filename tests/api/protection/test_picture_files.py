from __future__ import annotations

import io
import time
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from duet_server.api.protection.picture_files import (
    MAX_TIFF_STRIPS,
    TooManyPartsError,
    announced_format,
    open_picture,
    with_less_metadata,
)
from tests.api.protection.made_pictures import chunk, encoded, photo, png, tiff_of_strips, with_chunks

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def jpeg_with(segments):
    whole = encoded(photo(), "JPEG")
    start = whole.index(b"\xff\xdb")
    return whole[:start] + segments + whole[start:]


def gif_with(extension):
    whole = encoded(photo("P"), "GIF")
    start = whole.index(b",", 13)
    return whole[:start] + extension + whole[start:]


@pytest.mark.parametrize("file_format", FORMATS)
def test_rich_files_are_opened(file_format):
    """A colour profile of 500 KB, which GIF and JPEG cut into pieces, and EXIF."""
    exif = Image.Exif()
    exif[0x010E] = "a description" * 1000
    rich = {} if file_format in ("GIF", "BMP") else {"icc_profile": bytes(500_000), "exif": exif.tobytes()}
    data = encoded(photo(), file_format, **rich)
    if file_format == "GIF":
        pieces = (b"\xff" + bytes(255)) * (500_000 // 255)
        data = gif_with(b"!\xff\x0bICCRGBG1012" + pieces + b"\0")
    picture = open_picture(data, FORMATS)
    picture.load()
    assert picture.size == (40, 30)


def test_a_picture_of_many_pieces_of_pixels_is_read():
    header, end = png((300, 300), 8, 2, [])[:33], chunk(b"IEND", b"")
    rows = zlib.compress(b"".join(b"\0" + bytes(900) for _ in range(300)), 0)
    pieces = [chunk(b"IDAT", rows[start : start + 200]) for start in range(0, len(rows), 200)]
    assert len(pieces) > 1000
    picture = open_picture(header + b"".join(pieces) + end, FORMATS)
    picture.load()
    assert picture.getpixel((299, 299)) == (0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            jpeg_with((b"\xff\xe1\0\x12Exif\0\0" + b"x" * 10) * 1_000_000), id="JPEG of a million EXIF segments"
        ),
        pytest.param(jpeg_with(b"x" * (20 << 20)), id="JPEG behind junk"),
        pytest.param(gif_with((b"!\xfe" + b"\x01c" * 2 + b"\0") * 1_000_000), id="GIF of a million comments"),
        pytest.param(
            with_chunks(encoded(photo(), "PNG"), chunk(b"prVt", b"") * 1_000_000), id="PNG of a million chunks"
        ),
        pytest.param(tiff_of_strips(5_000_000), id="TIFF of five million strips"),
    ],
)
def test_headers_of_too_many_parts_are_refused_at_once(data):
    start = time.thread_time()
    with pytest.raises(TooManyPartsError):
        open_picture(data, FORMATS)
    assert time.thread_time() - start < 1


def test_so_is_what_follows_the_pixels():
    whole = encoded(photo(), "PNG")
    picture = open_picture(whole[:-12] + chunk(b"prVt", b"") * 1_000_000 + whole[-12:], FORMATS)
    start = time.thread_time()
    with pytest.raises(TooManyPartsError):
        picture.load()
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("tag", [273, 324])
@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])  # Pillow's kinds
def test_strips_are_counted_in_every_kind_of_tiff(order, is_big, tag):
    open_picture(tiff_of_strips(2000, order=order, is_big=is_big, tag=tag), FORMATS)
    with pytest.raises(TooManyPartsError, match=f"at most {MAX_TIFF_STRIPS} strips"):
        open_picture(tiff_of_strips(MAX_TIFF_STRIPS + 1, order=order, is_big=is_big, tag=tag), FORMATS)


@pytest.mark.parametrize(
    "data", [b"II", b"II*\0\xff\xff\xff\xff", b"II\x2b\0\x08\0\0\0" + b"\xff" * 8, b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_damaged_tiff_is_left_to_pillow(data):
    with pytest.raises((Image.UnidentifiedImageError, ValueError)) as refused:
        open_picture(data, FORMATS)
    assert refused.type is not TooManyPartsError


def test_less_metadata_means_first_no_text_and_then_no_profile():
    info = PngInfo()
    info.add_text("Comment", "plain")
    info.add_text("Comment", "packed", zip=True)
    info.add_itxt("Comment", "international")
    info.add(b"tEXt", b"late", after_idat=True)
    whole = encoded(photo(), "PNG", pnginfo=info, icc_profile=b"profile", exif=Image.Exif().tobytes())
    whole, without_text, bare = (names_of_chunks(version) for version in with_less_metadata(whole))
    text = {b"tEXt", b"zTXt", b"iTXt"}
    assert text | {b"iCCP", b"eXIf", b"IEND"} <= set(whole)
    assert without_text == [name for name in whole if name not in text]
    assert bare == [name for name in without_text if name != b"iCCP"]


def names_of_chunks(data):
    names, stream = [], io.BytesIO(data[8:])
    while head := stream.read(8):
        names.append(head[4:])
        stream.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    return names


def test_only_a_png_has_less():
    data = encoded(photo(), "JPEG")
    assert list(with_less_metadata(data)) == [data]


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_format_is_told_by_the_first_bytes(file_format):
    data = encoded(photo(), file_format)
    assert announced_format(data[:16], FORMATS) == file_format
    assert announced_format(data, [name for name in FORMATS if name != file_format]) is None
    assert announced_format(b"", FORMATS) is None
