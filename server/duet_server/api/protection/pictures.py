"""Checks a picture's header before the picture is decoded."""

from __future__ import annotations

from io import BytesIO

from PIL import Image
from vllm.multimodal.image import ALLOWED_IMAGE_FORMATS

from duet_server.api.errors import RequestRefusedError
from duet_server.api.options import ServerOptions

_FIELD = "image_url"


def check_picture(data: bytes, options: ServerOptions) -> None:
    """Raise RequestRefusedError if the options exclude the picture's format, size or shape.

    The image processor scales the shorter side to the model's size, so a narrow picture grows by its aspect ratio.
    """
    width, height = _size(data, options)
    max_pixels, max_ratio = options.media_max_pixels, options.media_max_aspect_ratio
    if max_pixels is not None and width * height > max_pixels:
        raise _refused(f"{width}x{height} pixels", f"at most {max_pixels} pixels")
    if max_ratio is not None and max(width, height) > max_ratio * min(width, height):
        raise _refused(f"{width}x{height} pixels", f"no side longer than {max_ratio} times the other")


def _size(data: bytes, options: ServerOptions) -> tuple[int, int]:
    formats = options.media_formats or ALLOWED_IMAGE_FORMATS
    try:
        with Image.open(BytesIO(data), formats=formats) as picture:
            return picture.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        max_pixels = options.media_max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or 0)  # if off: Pillow's own limit
        raise _refused(f"{len(data)} bytes", f"at most {max_pixels} pixels") from error
    except Exception as error:  # decoders raise all kinds of exceptions
        raise _refused(f"{len(data)} bytes", f"a picture in one of {', '.join(formats)}") from error


def _refused(value: str, expected: str) -> RequestRefusedError:
    return RequestRefusedError("media", _FIELD, value, expected)
