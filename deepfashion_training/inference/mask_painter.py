"""The mask on its way to the browser and back.

The page has a canvas of its own (``painter.js``). Gradio's ``ImageEditor`` 6.31 was tried and left: a layer that the
server gives it appears beside the photo, and it uploads every stroke.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.images.pictures import PictureError, open_picture
from deepfashion_training.inference.dress import mask_given

#: Longer side of the picture that people paint on. A larger photo's mask comes back in steps of its pixels.
SIDE = 1024
#: Longest value that is read: a painted mask of SIDE x SIDE takes a tenth of it.
MAX_LENGTH = 4_000_000
_PNG = "data:image/png;base64,"


def canvas_size(photo: Image.Image) -> tuple[int, int]:
    """Width and height of the canvas for a photo: its own, or as many pixels as fit into ``SIDE``."""
    scale = min(1.0, SIDE / max(photo.size))
    return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


def to_browser(person: str, photo: Image.Image, mask: np.ndarray) -> str:
    """What the canvas shows: an upright RGB photo, and on it ``mask`` [h, w] in {0, 1}; ``person`` is its name."""
    size = canvas_size(photo)
    painted = Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("LA", size, (255, 0))
    layer.putalpha(painted)
    sink = io.BytesIO()
    photo.resize(size, Image.Resampling.LANCZOS).save(sink, "JPEG", quality=90)
    return json.dumps({"person": person, "photo": _uri(sink.getvalue(), "jpeg"), "mask": _uri(_as_png(layer), "png")})


def person_of(value: object) -> str:
    """The name of the person whose photo is on the canvas; empty where there is none.

    Raises ``ValueError`` for what the canvas cannot have sent.
    """
    return str(_read(value).get("person", ""))


def mask_of(value: object, photo: Image.Image) -> np.ndarray:
    """The mask on the canvas as uint8 [h, w] in {0, 1} of the upright RGB ``photo``: 1 where it is painted.

    Raises ``ValueError`` for an empty mask, for one that cannot be meant (see ``mask_given``), and for what the canvas
    cannot have sent.
    """
    text = _read(value).get("mask")
    if not isinstance(text, str) or not text.startswith(_PNG):
        raise ValueError("the mask did not arrive: press “Make the mask”, or paint it")
    try:
        layer = open_picture(base64.b64decode(text.removeprefix(_PNG), validate=True), SIDE * SIDE)
    except ValueError as error:  # PictureError and binascii.Error are
        raise ValueError("the mask that arrived is no picture: press “Make the mask”, or paint it") from error
    if layer.size != canvas_size(photo):
        raise ValueError("the mask belongs to another photo: press “Make the mask”, or paint it")
    painted = np.asarray(layer.convert("RGBA"))[..., 3] > 127
    if not painted.any():
        raise ValueError("the mask is empty: press “Make the mask”, or paint over what the garment may cover")
    try:
        return mask_given(photo, Image.fromarray(painted.view(np.uint8) * np.uint8(255)), None)
    except PictureError as error:
        raise ValueError(f"the mask cannot be meant: {error}. Press “Make the mask” for one") from error


def _read(value: object) -> dict[str, Any]:
    if not value:
        return {}
    if not isinstance(value, str) or len(value) > MAX_LENGTH:
        raise ValueError("what the canvas sent cannot be read: load the page again")
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ValueError("what the canvas sent cannot be read: load the page again") from error
    return found if isinstance(found, dict) else {}


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _as_png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()
