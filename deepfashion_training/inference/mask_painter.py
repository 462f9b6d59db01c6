"""The mask on its way to the browser and back.

The page has a canvas of its own (``painter.js``). Gradio's ``ImageEditor`` 6.31 was tried and left: a layer that the
server gives it appears beside the photo, and it uploads every stroke.
"""

from __future__ import annotations

import base64
import io
import json

import numpy as np
from PIL import Image

from deepfashion_training.images.pictures import PictureError, open_picture
from deepfashion_training.inference.dress import mask_given

#: Longer side of the picture that people paint on. A larger photo's mask comes back in steps of its pixels.
SIDE = 1024


def canvas_size(photo: Image.Image) -> tuple[int, int]:
    """Width and height of the canvas for a photo: its own, or as many pixels as fit into ``SIDE``."""
    scale = min(1.0, SIDE / max(photo.size))
    return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


def to_browser(person: str, photo: Image.Image, mask: np.ndarray) -> str:
    """What the canvas shows: an upright RGB photo and ``mask`` [h, w] in {0, 1}; ``person`` identifies the photo."""
    size = canvas_size(photo)
    layer = Image.new("LA", size, (255, 0))
    layer.putalpha(Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.NEAREST))
    shown = photo.resize(size, Image.Resampling.LANCZOS)
    return json.dumps({"person": person, "photo": _data_uri(shown, "JPEG"), "mask": _data_uri(layer, "PNG")})


def mask_of(canvas: object, person: str, photo: Image.Image) -> np.ndarray:
    """The mask on the canvas as uint8 [h, w] in {0, 1} of the upright RGB ``photo``: 1 where it is painted.

    Raises ``ValueError`` where the canvas has none of this ``person``, and for masks that ``mask_given`` refuses.
    """
    try:
        sent = json.loads(str(canvas))
        layer = open_picture(base64.b64decode(sent["mask"].partition(",")[2]), SIDE * SIDE)
        fits = sent["person"] == person and layer.size == canvas_size(photo)
    except (ValueError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError("this photo has no mask yet: press “Make the mask”, then paint it as you like")
    painted = np.asarray(layer.convert("RGBA"))[..., 3] > 127
    try:
        return mask_given(photo, Image.fromarray(painted.view(np.uint8) * np.uint8(255)), None)
    except PictureError as error:
        raise ValueError(f"the mask cannot be used: {error}. “Make the mask” makes one") from error


def _data_uri(picture: Image.Image, image_format: str) -> str:
    sink = io.BytesIO()
    picture.save(sink, image_format, quality=90)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(sink.getvalue()).decode('ascii')}"
