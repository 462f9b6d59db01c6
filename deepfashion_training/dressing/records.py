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


def save_picture(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture in the form that its suffix names, complete or not at all; a PNG holds ``record``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.part")
    form = Image.registered_extensions()[path.suffix.lower()]
    if form == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text(FIELD, json.dumps(record, sort_keys=True))
        picture.save(staged, form, pnginfo=text)
    else:
        picture.save(staged, form, quality=95)
    staged.replace(path)


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
