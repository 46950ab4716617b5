from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest

from duet_server.api.errors import RequestRefusedError
from duet_server.api.protection.pictures import check_picture
from tests.api.web import picture_bytes


@pytest.fixture
def options(server):
    return server.app.state.duet.options


def png_header(width, height):
    """A PNG whose header names this size, without any pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("picture_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"])
def test_formats_of_the_web_and_of_cameras_are_accepted(picture_format, options):
    check_picture(picture_bytes(picture_format=picture_format), options)


@pytest.mark.parametrize("picture_format", ["PPM", "PCX", "ICO", "TGA"])
def test_other_formats_are_accepted_only_without_the_list(picture_format, options):
    data = picture_bytes(picture_format=picture_format)
    with pytest.raises(RequestRefusedError, match="a picture in one of PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF"):
        check_picture(data, options)
    check_picture(data, replace(options, media_formats=None))


def test_formats_that_start_a_program_are_always_refused(options):
    with pytest.raises(RequestRefusedError, match="a picture in one of"):
        check_picture(picture_bytes(picture_format="EPS"), replace(options, media_formats=None))


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_data_that_is_no_picture_is_refused(data, options):
    with pytest.raises(RequestRefusedError, match="a picture in one of"):
        check_picture(data, options)


def test_pixels_are_counted_before_they_are_decoded(options):
    check_picture(png_header(6000, 5000), options)
    with pytest.raises(RequestRefusedError, match="6000x5001 pixels', expected at most 30000000 pixels"):
        check_picture(png_header(6000, 5001), options)
    check_picture(png_header(6000, 5001), replace(options, media_max_pixels=None))


@pytest.mark.parametrize("max_pixels", [30_000_000, None])
def test_pictures_above_pillows_limit_are_a_client_error(max_pixels, options):
    with pytest.raises(RequestRefusedError, match=f"expected at most {max_pixels or 178956970} pixels"):
        check_picture(png_header(100_000, 100_000), replace(options, media_max_pixels=max_pixels))


def test_very_narrow_pictures_are_refused(options):
    for width, height in ((1, 1), (1, 200), (200, 1)):
        check_picture(png_header(width, height), options)
    for width, height in ((1, 201), (20_000, 1)):
        with pytest.raises(RequestRefusedError, match="no side longer than 200 times the other"):
            check_picture(png_header(width, height), options)
    check_picture(png_header(20_000, 1), replace(options, media_max_aspect_ratio=None))
