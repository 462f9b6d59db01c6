"""Colours of pictures: whatever profile a picture brings, its values become those of sRGB."""

from __future__ import annotations

import functools
import io
import logging
import struct
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

logger = logging.getLogger(__name__)

#: Largest difference in levels of 255 to sRGB of a profile that is taken for sRGB, of which there are many editions.
_SAME = 2
#: Pillow's mode of the pictures that a profile of a colour space is for.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class _Profile(NamedTuple):
    """A profile that can be used: its name, the mode that it is for, and the way to sRGB; None where it is sRGB."""

    name: str
    mode: str
    transform: ImageCms.ImageCmsTransform | None


def to_srgb(picture: Image.Image) -> Image.Image:
    """``picture`` in the colours of sRGB, without a profile, so that it is not converted twice.

    One that has a profile (ICC) of other colours becomes RGB, or RGBA where it has transparent parts; any other is
    returned as it is. A profile that cannot be read, or is for another kind of picture, is taken for sRGB, and so is
    Adobe RGB that only EXIF tells of: a warning says so, once for each profile and process. 16-bit and floating-point
    grey (modes I and F) is left alone: convert it to 8 bits first.
    """
    found = _profile_of(picture)
    if found is None or found.transform is None:
        return _without_profile(picture)
    opaque = picture.convert("RGBA") if picture.has_transparency_data else picture
    colours = opaque if opaque.mode == found.mode else opaque.convert(found.mode)
    seen = found.transform.apply(colours)
    if opaque is not picture:
        seen.putalpha(opaque.getchannel("A"))
    seen.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return _without_profile(seen)


def profile_name(picture: Image.Image) -> str | None:
    """Name of the profile that ``to_srgb`` converts ``picture`` from; None where it has nothing to convert."""
    found = _profile_of(picture)
    return found.name if found is not None and found.transform is not None else None


def _without_profile(picture: Image.Image) -> Image.Image:
    if "icc_profile" not in picture.info:
        return picture
    plain = picture.copy()
    del plain.info["icc_profile"]
    return plain


def _profile_of(picture: Image.Image) -> _Profile | None:
    """The profile that holds for the values of ``picture``; None for sRGB, and where that has to be assumed."""
    if picture.mode == "LAB":
        return _lab()
    stored = picture.info.get("icc_profile")
    if not stored:
        if _is_adobe_rgb(picture):
            _say_assumed("a picture is in Adobe RGB by its EXIF, without a colour profile")
        return None
    found = _read(bytes(stored))
    if found is None or picture.mode == "F" or picture.mode.startswith("I"):
        return None
    kind = {"CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(picture.mode, "RGB")
    if kind != found.mode and (kind, found.mode) != ("L", "RGB"):  # grey has a place in the colours of RGB
        _say_assumed(f"the colour profile {found.name!r} is for {found.mode} pictures, and one of mode {kind} has it")
        return None
    return found


def _is_adobe_rgb(picture: Image.Image) -> bool:
    """Whether EXIF says so: what cameras write where they store no profile."""
    try:
        return bool(picture.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == "R03")
    except (KeyError, ValueError, TypeError, OSError, SyntaxError, struct.error):  # no such block, or a damaged one
        return False


@functools.lru_cache(maxsize=64)
def _read(stored: bytes) -> _Profile | None:
    """The profile with these bytes; None, with a warning, for one that cannot be used."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        name = ImageCms.getProfileDescription(opened).strip() or "without a name"
        mode = _MODES[opened.profile.xcolor_space.strip()]
        transform = _way_to_srgb(opened, mode)
        probe = _probe(mode)
        seen = np.asarray(transform.apply(probe), np.int16)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError) as error:
        _say_assumed(f"a colour profile of {len(stored)} bytes cannot be used ({error})")
        return None
    is_srgb = mode != "CMYK" and np.abs(seen - np.asarray(probe.convert("RGB"), np.int16)).max() <= _SAME
    return _Profile(name, mode, None if is_srgb else transform)


@functools.lru_cache(maxsize=1)
def _lab() -> _Profile:
    return _Profile("CIELAB", "LAB", _way_to_srgb(ImageCms.createProfile("LAB"), "LAB"))


def _way_to_srgb(profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL)


def _probe(mode: str) -> Image.Image:
    """Colours of all kinds in one picture of ``mode``."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, 256 if channels == 1 else 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), -1)
    return Image.frombytes(mode, (grid.size // channels, 1), grid.tobytes())


@functools.lru_cache(maxsize=64)
def _say_assumed(why: str) -> None:
    """Say, once, that a picture is taken for sRGB."""
    logger.warning("%s: sRGB is assumed", why)
