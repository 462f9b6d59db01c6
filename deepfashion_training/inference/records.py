"""Pictures that say how they were made, in a PNG text field, by which a later run knows what is drawn already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from training_run.atomic import replacing

#: PNG text field that holds a picture's record.
FIELD = "tryon"
#: Longest side that a format can hold.
_LONGEST = {"JPEG": 65_500, "WEBP": 16_383}
#: How each format is saved: PNG and WebP keep every pixel.
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def save_picture(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture in the format that its suffix names, completely or not at all; a PNG holds ``record``."""
    image_format = _format_of(path)
    options = _OPTIONS.get(image_format, {})
    if image_format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text(FIELD, json.dumps(record, sort_keys=True))
        options = {"pnginfo": text}
    with replacing(path) as draft:
        picture.save(draft, image_format, **options)


def _format_of(path: Path) -> str:
    return Image.registered_extensions()[path.suffix.lower()]


def check_format(path: Path, size: tuple[int, int]) -> None:
    """Raise ``ValueError`` when the format that the suffix of ``path`` names cannot hold a picture of ``size``."""
    image_format = _format_of(path)
    if max(size) > _LONGEST.get(image_format, max(size)):
        raise ValueError(f"{path}: {image_format} holds no picture of {size[0]}x{size[1]} pixels: name a .png")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a PNG of ``save_picture``; None where there is no such picture."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            record = json.loads(picture.info[FIELD])
    except (OSError, SyntaxError, KeyError, ValueError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names whose values differ in two records."""
    one, other = json.loads(json.dumps(one)), json.loads(json.dumps(other))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
