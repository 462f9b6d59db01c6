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


def save_picture(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture in the format that its suffix names, completely or not at all; a PNG holds ``record``."""
    image_format = Image.registered_extensions()[path.suffix.lower()]
    text = PngImagePlugin.PngInfo()
    text.add_text(FIELD, json.dumps(record, sort_keys=True))
    # PNG and WebP keep every pixel.
    options: dict[str, Any] = {"PNG": {"pnginfo": text}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
    with replacing(path) as draft:
        picture.save(draft, image_format, **options[image_format])


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a PNG of ``save_picture``; None where there is no such picture."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return dict(json.loads(picture.info[FIELD]))
    except (OSError, SyntaxError, KeyError, ValueError, TypeError):
        return None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names whose values differ in two records."""
    one, other = json.loads(json.dumps(one)), json.loads(json.dumps(other))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
