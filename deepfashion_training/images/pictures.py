"""Pictures: upright 8-bit sRGB, and what their edges and transparent parts tell."""

from __future__ import annotations

import logging

import numpy as np
from PIL import ExifTags, Image

# What modules above need of these they take from here.
from training_run.decoding import WHITE as WHITE
from training_run.decoding import PictureError as PictureError
from training_run.decoding import TooManyPixelsError as TooManyPixelsError
from training_run.decoding import open_picture as open_picture
from training_run.decoding import over as over
from training_run.decoding import to_rgb as to_rgb

logger = logging.getLogger(__name__)

#: Shortest side of a stored picture that shows anything: a dot would be blown up into a whole person or mask.
MIN_SIDE = 8

#: EXIF orientation -> what brings the stored pixels upright. 1 is upright already.
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Bytes of an EXIF without entries: its name, the header of a TIFF, 0 as the number of entries and of a next table.
_EMPTY_EXIF = 6 + 8 + 2 + 4


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of ``picture``, 1 to 8; 1 (upright) when there is none, or none that can be read."""
    try:
        exif = picture.getexif()
        if not exif and len(picture.info.get("exif") or b"") > _EMPTY_EXIF:
            raise ValueError("none of its entries is whole")
        value = exif.get(ExifTags.Base.Orientation, 1)
        return value if value in _TO_UPRIGHT else 1
    except Exception as error:  # damaged EXIF: SyntaxError, ValueError, struct.error and others
        logger.warning("EXIF cannot be read (%s): the picture is taken as upright", error)
        return 1


def turn(picture: Image.Image, exif_orientation: int) -> Image.Image:
    """``picture`` as it is meant to be seen when its stored pixels have ``exif_orientation``."""
    method = _TO_UPRIGHT.get(exif_orientation)
    return picture if method is None else picture.transpose(method)


def upright(picture: Image.Image) -> Image.Image:
    """``picture`` as it is meant to be seen, by its EXIF, in 8-bit sRGB; see ``to_rgb``."""
    return turn(to_rgb(picture), orientation(picture))


def box_of(mask: np.ndarray, room: int = 0) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom (both exclusive) of what is not 0 in ``mask`` ``[h, w]``.

    ``room`` widens the box to each side, as far as the mask reaches. ``None`` for an empty mask.
    """
    box = Image.fromarray((mask != 0).view(np.uint8)).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    height, width = mask.shape
    return max(0, left - room), max(0, top - room), min(width, right + room), min(height, bottom + room)


def opacity(picture: Image.Image) -> np.ndarray | None:
    """Alpha channel of ``picture``, uint8 ``[h, w]``; ``None`` where every pixel is opaque."""
    if not picture.has_transparency_data:
        return None
    alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


def border_colour(picture: Image.Image) -> tuple[int, int, int]:
    """Background colour of an RGB picture: the median of its outermost ring of pixels, per channel.

    The median ignores whatever touches less than half of the border, such as feet at the bottom.
    """
    width, height = picture.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    ring = np.concatenate([np.asarray(picture.crop(edge)).reshape(-1, 3) for edge in edges])
    red, green, blue = np.median(ring, axis=0).astype(np.uint8).tolist()
    return red, green, blue
