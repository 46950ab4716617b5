"""Malformed picture files, and some that are only unusual."""

from __future__ import annotations

import functools
import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image, ImageCms, features

from benchmarks.pictures import encoded, picture

Bytes = tuple[bytes, str]  # a file and its media type
Random = random.Random
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "BMP": "image/bmp", "TIFF": "image/tiff"}
MODES = {"1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "RGBA": "PNG", "I;16": "PNG", "CMYK": "JPEG", "F": "TIFF",
         "I": "TIFF", "YCbCr": "TIFF"}  # fmt: skip
RARE_FORMATS = ("ICO", "PCX", "TGA", "PPM", "SGI", "IM", "MSP", "XBM", "DDS", "WEBP", "JPEG2000", "AVIF", "EPS")
MEDIA_TYPES = ("image/svg+xml", "text/html", "application/pdf", "video/mp4", "image/", "", "image/png;charset=utf-8")


def truncated(rng: Random) -> Bytes:
    file_format = rng.choice(list(FORMATS))
    whole = picture(file_format=file_format)
    return whole[: rng.randrange(len(whole))], FORMATS[file_format]


def damaged(rng: Random) -> Bytes:
    file_format = rng.choice(list(FORMATS))
    content = bytearray(picture(file_format=file_format))
    for _ in range(rng.randint(1, 40)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content), FORMATS[file_format]


def random_bytes(rng: Random) -> Bytes:
    return rng.randbytes(rng.choice([0, 1, 7, 100, 5000])), "image/png"


def random_bytes_behind_a_signature(rng: Random) -> Bytes:
    signature = rng.choice(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\x00", b"RIFF\xff\xff\xff\xffWEBP"]
    )
    return signature + rng.randbytes(rng.choice([8, 64, 900])), "image/png"


def bomb(rng: Random) -> Bytes:
    """A file of some kilobytes that decodes to 100 to 2,500 million pixels."""
    return _black_png(rng.choice([10_000, 20_000, 50_000])), "image/png"


@functools.cache
def _black_png(side: int) -> bytes:
    row = b"\0" * (1 + side // 8)
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    return _png(side, side, data, bit_depth=1, color_type=0)


def _png(width: int, height: int, data: bytes, *, bit_depth: int = 8, color_type: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb_in_a_chunk(rng: Random) -> Bytes:
    """A comment or a colour profile that inflates to 100 MiB."""
    name, keyword = rng.choice([(b"zTXt", b"comment\0\0"), (b"iCCP", b"profile\0\0"), (b"iTXt", b"comment\0\1\0\0\0")])
    return _png(4, 4, zlib.compress(b"\0" * 4 * 13), extra=_chunk(name, keyword + _deflated_zeros())), "image/png"


@functools.cache
def _deflated_zeros() -> bytes:
    return zlib.compress(bytes(100 << 20), 9)


def huge_header(rng: Random) -> Bytes:
    """A header whose dimensions are far too large for the few bytes after it."""
    width, height = rng.choice([(1 << 31) - 1, 100_000, 30_000]), rng.choice([(1 << 31) - 1, 100_000, 30_000])
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0) + b"\0" * 6
    ppm = f"P6 {width} {height} 255\n".encode() + b"\0" * 9
    return rng.choice([(_png(width, height, zlib.compress(b"\0" * 9)), "image/png"), (gif, "image/gif"),
                       (bmp, "image/bmp"), (ppm, "image/x-portable-pixmap")])  # fmt: skip


def odd_size(rng: Random) -> Bytes:
    return picture(rng.choice([(1, 1), (1, 20_000), (20_000, 1), (2, 3), (1, 300)])), "image/png"


def no_size(rng: Random) -> Bytes:
    return _png(*rng.choice([(0, 0), (0, 5), (5, 0)]), zlib.compress(b"")), "image/png"


def odd_mode(rng: Random) -> Bytes:
    mode = rng.choice(list(MODES))
    return picture(mode=mode, file_format=MODES[mode]), FORMATS[MODES[mode]]


def odd_transparency(rng: Random) -> Bytes:
    """A transparent value or colour, or a list of them that may be too short or too long."""
    color_type, row = rng.choice([(0, b"\0" + bytes(4)), (2, b"\0" + bytes(12)), (3, b"\0" + bytes(4))])
    palette = _chunk(b"PLTE", rng.randbytes(3 * rng.choice([1, 256]))) if color_type == 3 else b""
    transparent = _chunk(b"tRNS", rng.randbytes(rng.choice([0, 1, 2, 6, 256, 300])))
    return _png(4, 4, zlib.compress(row * 4), color_type=color_type, extra=palette + transparent), "image/png"


def odd_profile(rng: Random) -> Bytes:
    """A colour profile, whole, damaged, or none at all."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # the time of its creation
    for _ in range(rng.choice([0, 1, 20])):
        profile[rng.randrange(len(profile))] = rng.randrange(256)
    file_format, mode = rng.choice([("PNG", "RGB"), ("PNG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "RGBA")])
    content = rng.choice([bytes(profile), bytes(profile[: rng.randrange(len(profile))]), rng.randbytes(500)])
    return picture(mode=mode, file_format=file_format, icc_profile=content), FORMATS[file_format]


def many_parts(rng: Random) -> Bytes:
    """Metadata in so many pieces that a decoder may need minutes to put them together."""
    jpeg, png = picture(file_format="JPEG"), picture()
    exif, comments = b"\xff\xe1\0\x12Exif\0\0" + bytes(10), _chunk(b"tEXt", b"a\0b")
    tags = [(256, 3, 4), (257, 3, 4), (258, 3, 8), (262, 3, 1), (278, 3, 1)]
    directory = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
    directory += struct.pack("<HHLL", 273, 4, 100_000, 90)
    tiff = b"II*\0" + struct.pack("<LH", 8, len(tags) + 1) + directory
    return rng.choice([(jpeg[:2] + exif * 20_000 + jpeg[2:], "image/jpeg"),
                       (png[:33] + comments * 20_000 + png[33:], "image/png"),
                       (tiff.ljust(500_000, b"\0"), "image/tiff")])  # fmt: skip


def animated(rng: Random) -> Bytes:
    file_format = rng.choice(["GIF", "PNG", *(["WEBP"] if features.check("webp") else [])])
    frames = [Image.new("RGB", (40, 40), (value, 0, 0)) for value in range(0, 250, rng.choice([5, 100]))]
    content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    return content[: len(content) - rng.choice([0, 0, 30])], f"image/{file_format.lower()}"


def exif_junk(rng: Random) -> Bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.choice([0, 5, 8, 99, 65535])  # orientation
    content = exif.tobytes() if rng.random() < 0.5 else b"Exif\0\0" + rng.randbytes(rng.choice([0, 10, 4000]))
    return picture(file_format="JPEG", exif=content), "image/jpeg"


def rare_format(rng: Random) -> Bytes:
    file_format = rng.choice([name for name in RARE_FORMATS if name in _writable_formats()])
    mode = {"MSP": "1", "XBM": "1", "PCX": "L"}.get(file_format, "RGB")
    return picture(mode=mode, file_format=file_format), f"image/{file_format.lower()}"


@functools.cache
def _writable_formats() -> frozenset[str]:
    Image.init()
    missing = {
        name
        for name, codec in {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.items()
        if not features.check(codec)
    }
    return frozenset(Image.SAVE) - missing


def other_file(rng: Random) -> Bytes:
    return rng.choice(
        [
            (_archive(), "application/zip"),
            (picture() + _archive(), "image/png"),
            (gzip.compress(picture(), mtime=0), "image/png"),
            (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "image/svg+xml"),
            (b"<!DOCTYPE html><title>404</title>", "text/html"),
            (b"\x7fELF" + bytes(60), "image/jpeg"),
            (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
            (b"%PDF-1.4\n%%EOF", "application/pdf"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "image/eps"),
        ]
    )


def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("picture.png"), picture())
    return buffer.getvalue()


def wrong_media_type(rng: Random) -> Bytes:
    return picture(file_format=rng.choice(["PNG", "JPEG"])), rng.choice([*MEDIA_TYPES, "image/gif"])


FILES: tuple[Callable[[Random], Bytes], ...] = (
    truncated, damaged, random_bytes, random_bytes_behind_a_signature, bomb, bomb_in_a_chunk, huge_header,
    odd_size, no_size, odd_mode, odd_transparency, odd_profile, many_parts, animated, exif_junk, rare_format,
    other_file, wrong_media_type,
)  # fmt: skip
