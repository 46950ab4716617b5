"""Reads a client's picture: its header is checked, then it is decoded once, and no fault of the file is passed over."""

from __future__ import annotations

import vllm.envs as envs
from PIL import Image
from vllm.multimodal.image import ALLOWED_IMAGE_FORMATS, convert_image_mode
from vllm.multimodal.media import ImageMediaIO
from vllm.multimodal.media.base import MediaWithBytes

from duet_server.api.errors import RequestRefusedError
from duet_server.api.options import ServerOptions
from duet_server.api.protection.picture_files import (
    TooManyPartsError,
    announced_format,
    open_picture,
    with_less_metadata,
)
from duet_server.api.protection.pixels import UnshowableError, shown
from duet_server.plan.errors import Words


def read_picture(data: bytes, reader: ImageMediaIO, options: ServerOptions) -> MediaWithBytes[Image.Image]:
    """The picture in the mode that vLLM's reader is set to, by default RGB, together with its file.

    vLLM's caches tell pictures apart by the file and by what is said here of its conversion.

    Raises:
        RequestRefusedError: if the options exclude the picture, or if it cannot be decoded or shown.
    """
    picture = _decoded(data, options)
    mode, background = reader.image_mode, reader.rgba_background_color
    if mode is None or picture.mode == mode:
        return MediaWithBytes(picture, data)
    converted = convert_image_mode(picture, mode, background)
    return MediaWithBytes(converted, data, {"image_mode": mode, "rgba_background_color": background})


def _decoded(data: bytes, options: ServerOptions) -> Image.Image:
    formats = options.media_formats or ALLOWED_IMAGE_FORMATS
    failure: Exception
    for version in with_less_metadata(data):
        try:
            picture = open_picture(version, formats)
            _check_size(*picture.size, options)
            return shown(picture)
        except RequestRefusedError:
            raise
        except ValueError as error:  # of a PNG, perhaps its metadata
            failure = error
        except Exception as error:  # decoders raise all kinds of exceptions
            failure = error
            break
    raise _explained(failure, data, options) from failure


def _check_size(width: int, height: int, options: ServerOptions) -> None:
    """The image processor scales the shorter side to the model's size: a narrow picture grows by its aspect ratio."""
    max_pixels, max_ratio = _max_pixels(options), options.media_max_aspect_ratio
    if max_pixels is not None and width * height > max_pixels:
        raise _refused(f"{width}x{height} pixels", f"at most {max_pixels} pixels")
    if max_ratio is not None and max(width, height) > max_ratio * min(width, height):
        raise _refused(f"{width}x{height} pixels", f"no side longer than {max_ratio} times the other")


def _max_pixels(options: ServerOptions) -> int | None:
    caps = [cap for cap in (options.media_max_pixels, envs.VLLM_MAX_IMAGE_PIXELS) if cap]
    return min(caps, default=None)


def _explained(failure: Exception, data: bytes, options: ServerOptions) -> RequestRefusedError:
    formats = options.media_formats or ALLOWED_IMAGE_FORMATS
    name = announced_format(data, formats)
    value = f"{name} of {len(data)} bytes" if name else f"{len(data)} bytes"
    if isinstance(failure, UnshowableError):
        return _refused(failure.value, failure.expected)
    if isinstance(failure, TooManyPartsError):
        return _refused(value, str(failure))
    if isinstance(failure, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _refused(value, f"at most {_max_pixels(options) or 2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels")
    if name is None:
        return _refused(value, f"a picture in one of {', '.join(formats)}")
    return _refused(value, f"a {name} file that is complete, undamaged and of a usual kind")


def _refused(value: str, expected: str) -> RequestRefusedError:
    return RequestRefusedError("media", "image_url", Words(value), expected)
