"""A decoded picture's pixels as a viewer shows them: upright, 8 bits a channel, in sRGB."""

from __future__ import annotations

import io
from functools import cache, lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile
from vllm.multimodal.image import normalize_image

_SHOWN = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})  # modes that Pillow converts
_DEEP = ("PNG", "TIFF")  # formats whose grey of 16 bits goes from 0 to 65535
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag, and its default
_LEVELS_PER_SAMPLE = {"L;2": 85, "L;4": 17}  # a PNG's samples of few bits, which Pillow spreads over 0 to 255
_PROFILE_SPACES = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}  # of other modes: RGB
_MAX_PROFILE = 4 << 20  # bytes; profiles of printers have up to 3 MB
_SAME = 2  # levels; the sRGB profiles in use differ from each other by one


class UnshowableError(Exception):
    """Pixels that can be shown in more than one way."""

    def __init__(self, value: str, expected: str) -> None:
        super().__init__(value, expected)
        self.value = value
        self.expected = expected


def shown(picture: ImageFile.ImageFile) -> Image.Image:
    """Decode the picture.

    Returns:
        a picture that vLLM's conversion to RGB shows as a viewer does. Pictures of 8 bits a channel are left as they
        are, unless they have a colour profile other than sRGB.

    Raises:
        UnshowableError: if there is no one way to show such pixels.
        Exception: what Pillow raises if the file is damaged.
    """
    rawmode, zero_is_white = _rawmode(picture), _zero_is_white(picture)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # one switch for the process, which a library may have set
    picture.load()
    upright = normalize_image(picture)  # swallows errors, but now only those of EXIF, which viewers ignore too
    if upright.mode.startswith("I;16") and picture.format in _DEEP:
        full = 0xFFF if rawmode == "I;12" else 0xFFFF
        return _in_srgb(_in_8_bits(upright, full, zero_is_white=zero_is_white))
    return _in_srgb(_in_known_mode(upright, rawmode))


def _rawmode(picture: ImageFile.ImageFile) -> str:
    """How the file stores a pixel, in Pillow's terms."""
    args: Any = picture.tile[0].args if picture.tile else ""
    return args if isinstance(args, str) else args[0]


def _zero_is_white(picture: ImageFile.ImageFile) -> bool:
    """Of a TIFF; Pillow inverts it if it has at most 8 bits."""
    tags = getattr(picture, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO


def _in_8_bits(picture: Image.Image, full: int, *, zero_is_white: bool) -> Image.Image:
    """A grey picture of more than 8 bits as L, or as LA if one of its values is transparent."""
    values = np.asarray(picture)
    levels = np.rint(np.linspace(0, 255, full + 1)).astype(np.uint8)
    grey = Image.fromarray((levels[::-1] if zero_is_white else levels)[values])
    if (key := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray((values != key).astype(np.uint8) * 255))
    grey.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return grey


def _in_known_mode(picture: Image.Image, rawmode: str) -> Image.Image:
    if picture.mode == "LAB":
        return _lab_to_srgb().apply(picture)
    if picture.mode == "La":
        return picture.convert("LA")
    if picture.mode not in _SHOWN:
        raise UnshowableError(f"mode {picture.mode}", "a picture of 8 bits a channel, or a grey PNG or TIFF of 16")
    if "transparency" in picture.info and rawmode == "RGB;16B":  # Pillow drops the bits that tell the colour
        raise UnshowableError("RGB of 16 bits with a transparent colour", "an alpha channel, or 8 bits a channel")
    if "transparency" in picture.info and rawmode in _LEVELS_PER_SAMPLE:
        picture.info["transparency"] *= _LEVELS_PER_SAMPLE[rawmode]
    if "transparency" in picture.info and picture.mode == "RGB":  # vLLM leaves RGB as it is
        return picture.convert("RGBA")
    return picture


def _in_srgb(picture: Image.Image) -> Image.Image:
    """Apply the picture's colour profile. One that is broken or for other channels is ignored, as viewers do."""
    profile = picture.info.get("icc_profile")
    mode = _PROFILE_SPACES.get(picture.mode, "RGB")
    if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE:
        return picture
    if (transform := _to_srgb(profile, mode)) is None:
        return picture
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
    result = transform.apply(picture.convert(mode))
    if picture.mode == "RGBA":
        result.putalpha(picture.getchannel("A"))
    return result


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from pixels of this profile to sRGB, or None if there is none to go."""
    try:
        transform = ImageCms.buildTransform(io.BytesIO(profile), _srgb(), mode, "RGB")
    except ImageCms.PyCMSError:
        return None
    if mode != "RGB":
        return transform
    changed = ImageChops.difference(_all_hues(), transform.apply(_all_hues()))
    return transform if np.asarray(changed).max() > _SAME else None


@cache
def _all_hues() -> Image.Image:
    """16 levels of each channel, in all combinations."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3))


@cache
def _srgb() -> ImageCms.core.CmsProfile:
    return ImageCms.createProfile("sRGB")


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb(), "LAB", "RGB")
