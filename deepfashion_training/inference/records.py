"""Pictures that say what they were made from and how, in a PNG text field.

A run that was stopped knows by it which pictures it need not make again, and no other record can disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

#: PNG text field that holds a picture's record.
FIELD = "tryon"
#: Longest side that a form can hold.
_LONGEST = {"JPEG": 65_500, "WEBP": 16_383}


def save_picture(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture in the form that its suffix names, complete or not at all; a PNG holds ``record``.

    PNG and WebP keep every pixel as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    form = form_of(path)
    try:
        if form == "PNG":
            text = PngImagePlugin.PngInfo()
            text.add_text(FIELD, json.dumps(record, sort_keys=True))
            picture.save(staged, form, pnginfo=text)
        elif form == "WEBP":
            picture.save(staged, form, lossless=True)
        else:
            picture.save(staged, form, quality=95)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def form_of(path: Path) -> str:
    """Pillow's name of the form that the suffix of ``path`` names, such as ``PNG``."""
    return Image.registered_extensions()[path.suffix.lower()]


def check_form(path: Path, size: tuple[int, int]) -> None:
    """Raise ``ValueError`` when the form that the suffix of ``path`` names cannot hold a picture of ``size``."""
    form = form_of(path)
    if max(size) > _LONGEST.get(form, max(size)):
        raise ValueError(f"{path}: {form} holds no picture of {size[0]}x{size[1]} pixels: name a .png")


def made_from(path: Path) -> dict[str, Any] | None:
    """The record in a PNG of ``save_picture``; None where there is no such picture."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            record = json.loads(picture.info[FIELD])
    except (OSError, SyntaxError, KeyError, ValueError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names whose values in two records differ."""
    one, other = json.loads(json.dumps(one)), json.loads(json.dumps(other))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
