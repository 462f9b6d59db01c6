"""Colours of pictures: whatever profile a picture brings, its values become those of sRGB."""

from __future__ import annotations

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

#: Pillow's mode of the pictures that a profile of a colour space is for.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_srgb(picture: Image.Image) -> Image.Image:
    """``picture`` in the colours of sRGB, without a profile, so that it is not converted twice.

    One that has a profile (ICC) of other colours becomes RGB, or RGBA where it has transparent parts; any other is
    returned as it is. A profile that cannot be read, or is for another kind of picture, is taken for sRGB: a warning
    says so. 16-bit and floating-point grey (modes I and F) is left alone: convert it to 8 bits first.
    """
    if "icc_profile" not in picture.info:
        return picture
    found = _profile_of(picture)
    if found is None:
        seen = picture.copy()
    else:
        _, mode, transform = found
        opaque = picture.convert("RGBA") if picture.has_transparency_data else picture
        seen = transform.apply(opaque if opaque.mode == mode else opaque.convert(mode))
        if opaque is not picture:
            seen.putalpha(opaque.getchannel("A"))
        seen.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    del seen.info["icc_profile"]
    return seen


def profile_name(picture: Image.Image) -> str | None:
    """Name of the profile that ``to_srgb`` converts ``picture`` from; None where it has nothing to convert."""
    found = _profile_of(picture)
    return found[0] if found is not None else None


def _profile_of(picture: Image.Image) -> tuple[str, str, ImageCms.ImageCmsTransform] | None:
    """Name, Pillow's mode and way to sRGB of the profile that holds for ``picture``; None for sRGB."""
    stored = picture.info.get("icc_profile")
    if not stored or picture.mode == "F" or picture.mode.startswith("I"):
        return None
    kind = {"CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(picture.mode, "RGB")
    return _read(bytes(stored), kind)


@functools.lru_cache(maxsize=64)
def _read(stored: bytes, kind: str) -> tuple[str, str, ImageCms.ImageCmsTransform] | None:
    """The profile with these bytes; None for sRGB, and with a warning for one that is of no use for this ``kind``."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        mode = _MODES[profile.profile.xcolor_space.strip()]
        if (kind, mode) not in ((mode, mode), ("L", "RGB")):  # grey has a place in the colours of RGB
            raise ValueError(f"it is for {mode} pictures, and one of mode {kind} has it")
        name = ImageCms.getProfileDescription(profile).strip() or "without a name"
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else (name, mode, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("a colour profile of %d bytes cannot be used (%s): sRGB is assumed", len(stored), error)
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether colours of all kinds stay as they are, up to two levels of 255: sRGB has many editions."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), -1)
    probe = Image.frombytes(mode, (colours.size // channels, 1), colours.tobytes())
    seen = np.asarray(transform.apply(probe), np.int16)
    return bool(np.abs(seen - np.asarray(probe.convert("RGB"), np.int16)).max() <= 2)
