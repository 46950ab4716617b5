"""Opens picture files so that no header costs Pillow minutes or gigabytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

from PIL import Image, ImageFile

MAX_HEADER_READS = 4096  # a GIF's colour profile takes up to 4,000 reads, all else takes fewer
BYTES_PER_READ = 128  # at least, on average, once the header has been read; encoders write pieces of kilobytes
MAX_TIFF_STRIPS = 1 << 16  # 30 megapixels in tiles of 16 by 32; a second of Pillow's time
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324  # tags of a TIFF
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")


class TooManyPartsError(ValueError):
    """A file in so many parts that reading them would take too long. Its text says what would be read."""


def open_picture(data: bytes, formats: Sequence[str]) -> ImageFile.ImageFile:
    """Open a file with Pillow, without decoding its pixels.

    Raises:
        TooManyPartsError: here or while the picture is decoded.
        Exception: what Pillow raises.
    """
    if _num_tiff_strips(data) > MAX_TIFF_STRIPS:
        raise TooManyPartsError(f"a TIFF of at most {MAX_TIFF_STRIPS} strips or tiles")
    stream = _BoundedStream(data)
    picture = Image.open(stream, formats=tuple(formats))
    stream.reads_left = MAX_HEADER_READS + len(data) // BYTES_PER_READ
    return picture


def with_less_metadata(data: bytes) -> Iterator[bytes]:
    """The file; of a PNG then also the file without its text, and without text and colour profile.

    Pillow refuses a PNG whose text or profile unpacks to more than 1 MiB. Viewers pass over them.
    """
    yield data
    if data.startswith(_PNG_SIGNATURE):
        yield _without_chunks(data, _PNG_TEXT)
        yield _without_chunks(data, (*_PNG_TEXT, b"iCCP"))


def announced_format(data: bytes, formats: Sequence[str]) -> str | None:
    """The first of these formats that the file's first bytes announce."""
    Image.init()
    prefix = data[:16].ljust(16, b"\0")
    accepts = ((name, Image.OPEN[name][1]) for name in formats)
    return next((name for name, accept in accepts if accept and accept(prefix) is True), None)


class _BoundedStream(io.BytesIO):
    """Pillow works in Python, and often in quadratic time, for every piece of a header that it reads."""

    reads_left = MAX_HEADER_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise TooManyPartsError("a file in fewer parts, such as one without metadata")
        return super().read(size)


def _num_tiff_strips(data: bytes) -> int:
    """Strips or tiles of a TIFF's first picture, for each of which Pillow makes an object of some 250 bytes."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 0
    is_big = data[2:3] == b"\x2b"
    number, num_bytes = (order + "Q", 8) if is_big else (order + "L", 4)
    try:
        (directory,) = struct.unpack_from(number, data, num_bytes)
        (num_tags,) = struct.unpack_from(number if is_big else order + "H", data, directory)
        first, step = (directory + 8, 20) if is_big else (directory + 2, 12)
        places = range(first, first + step * min(num_tags, MAX_HEADER_READS), step)
        tags = [struct.unpack_from(f"{order}HH{number[1]}", data, place) for place in places]
    except (struct.error, OverflowError):  # Pillow cannot read it either
        return 0
    return max((count for tag, _, count in tags if tag in (_STRIP_OFFSETS, _TILE_OFFSETS)), default=0)


def _without_chunks(png: bytes, names: Sequence[bytes]) -> bytes:
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while len(header := png[start : start + 8]) == 8:
        length, name = struct.unpack(">L4s", header)
        end = start + 8 + length + 4
        if name not in names:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)
