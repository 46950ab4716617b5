"""Picture files and colour profiles made by hand, for what Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))  # XYZ, D50
ADOBE_PRIMARIES = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
D50 = (0.9642, 1.0, 0.8249)


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def photo(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Many colours, without symmetry."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    noise = np.random.default_rng(0).integers(0, 40, (height, width))
    channels = [across, down, (across + down) / 2, 255 - across * down / 300]
    rgba = np.stack([np.clip(channel + noise - 20, 0, 255) for channel in channels], axis=-1).astype(np.uint8)
    picture = Image.fromarray(rgba)
    return picture.convert(mode) if mode in ("RGBA", "LA") else picture.convert("RGB").convert(mode)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def png(size: tuple[int, int], bit_depth: int, colour_type: int, rows: Sequence[bytes], *extra: bytes) -> bytes:
    """A PNG of these packed rows, with extra chunks before them."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", *size, bit_depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def with_chunks(file: bytes, *chunks: bytes) -> bytes:
    """A PNG file with these chunks behind its header."""
    end_of_header = 8 + 25
    return file[:end_of_header] + b"".join(chunks) + file[end_of_header:]


def tiff(tags: Mapping[int, tuple[int, int, int]], data: bytes, *, order: str = "<", is_big: bool = False) -> bytes:
    """A TIFF with ``data`` behind its directory.

    Args:
        tags: type, count and value by tag. A value of -1 is replaced by the place of ``data``.
        data: strips, or lists that are too long for the directory.
        order: ``<`` or ``>``.
        is_big: as BigTIFF.
    """
    word, long = ("Q", "Q") if is_big else ("H", "L")
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if is_big else 42)
    header += struct.pack(order + "HHQ", 8, 0, 16) if is_big else struct.pack(order + "L", 8)
    place = len(header) + struct.calcsize(order + word) + len(tags) * struct.calcsize(f"{order}HH{long}{long}") + 8
    directory = struct.pack(order + word, len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        is_short = kind == 3 and count == 1
        directory += struct.pack(f"{order}HH{long}", tag, kind, count)
        size = struct.calcsize(order + long)
        directory += (
            struct.pack(order + "H", value).ljust(size, b"\0")
            if is_short
            else struct.pack(order + long, place if value == -1 else value)
        )
    return header + directory + bytes(8) + data


def grey_tiff(
    values: bytes, size: tuple[int, int], bits: int, *, photometric: int = 1, sample_format: int = 1
) -> bytes:
    """One strip of samples, little-endian."""
    short = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric, 277: 1, 278: size[1], 339: sample_format}
    tags = {tag: (3, 1, value) for tag, value in short.items()}
    return tiff({**tags, 273: (4, 1, -1), 279: (4, 1, len(values))}, values)


def tiff_of_strips(num_strips: int, *, order: str = "<", is_big: bool = False, tag: int = 273) -> bytes:
    """A grey TIFF whose list of strips, all the same, is this long."""
    tags = {name: (3, 1, value) for name, value in ((256, 4), (257, 4), (258, 8), (262, 1), (322, 4), (323, 1))}
    return tiff({**tags, 278: (3, 1, 1), tag: (4, num_strips, -1)}, bytes(4 * num_strips), order=order, is_big=is_big)


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">l", round(number * 65536)) for number in numbers)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    place, table, content = 128 + 4 + 12 * len(tags), struct.pack(">L", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sLL", name, place + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    header = struct.pack(
        ">L4sL4s4s4s12s4s", place + len(content), b"", 0x02400000, kind, space, connection, b"", b"acsp"
    )
    return header.ljust(68, b"\0") + _fixed(*D50).ljust(60, b"\0") + table + content


def _xyz(numbers: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*numbers)


def gamma_curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">LH", 1, round(gamma * 256))


def srgb_curve() -> bytes:
    """sRGB's curve as a table, as in the profile that most cameras write."""
    level = np.linspace(0, 1, 1024)
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">L1024H", 1024, *np.rint(linear * 65535).astype(int))


def rgb_profile(primaries: Sequence[Sequence[float]], curve: bytes) -> bytes:
    columns = {name + b"XYZ": _xyz(column) for name, column in zip((b"r", b"g", b"b"), primaries, strict=True)}
    curves = {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", {b"wtpt": _xyz(D50), **columns, **curves})


def grey_profile(curve: bytes) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": curve})


def ink_profile(lab: tuple[int, int, int]) -> bytes:
    """Of a printer on which black ink is black, and every mixture without it gives this colour (8-bit Lab)."""
    identity = bytes(range(256))
    table = struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += identity * 4 + (bytes(lab) + bytes((0, 128, 128))) * 2**3 + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": table})
