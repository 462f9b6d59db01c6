"""Pictures: from stored bytes to upright 8-bit sRGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from training_run.colour import to_srgb

#: Formats that are opened. Pillow knows more, but some of them call other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

#: Shortest side of a stored picture that shows anything: a dot would be blown up into a whole person or mask.
MIN_SIDE = 8

WHITE = (255, 255, 255)

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


class PictureError(ValueError):
    """A picture that cannot be used: what is wrong with it, in one line."""


class TooManyPixelsError(PictureError):
    """A picture with more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``: perhaps a decompression bomb."""


def open_picture(data: bytes | str, max_pixels: int | None = None, min_side: int = 1) -> Image.Image:
    """The picture in ``data``, decoded to its last pixel, in the mode in which it was stored.

    Raises ``PictureError`` for anything that Pillow cannot read completely, for formats beyond ``FORMATS``, for a side
    under ``min_side`` and for a ``str``, which says why there are no bytes; ``TooManyPixelsError`` above
    ``max_pixels``, by default ``PIL.Image.MAX_IMAGE_PIXELS`` (Pillow itself refuses only twice as many).
    """
    if isinstance(data, str):
        raise PictureError(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        if limit is not None and picture.width * picture.height > limit:
            raise TooManyPixelsError(f"{picture.width}x{picture.height} pixels, above the limit of {limit}")
        if min(picture.size) < min_side:
            raise PictureError(f"{picture.width}x{picture.height} pixels, a side under {min_side}")
        picture.load()
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(str(error)) from error
    except UnidentifiedImageError as error:  # whose message is an address in memory
        raise PictureError(f"not readable as a picture: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error and others
        raise PictureError(f"not readable as a picture: {type(error).__name__}: {error}") from error
    return picture


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of ``picture``, 1 to 8; 1 (upright) when there is none or it is out of range."""
    value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in _TO_UPRIGHT else 1


def turn(picture: Image.Image, exif_orientation: int) -> Image.Image:
    """``picture`` as it is meant to be seen when its stored pixels have ``exif_orientation``."""
    method = _TO_UPRIGHT.get(exif_orientation)
    return picture if method is None else picture.transpose(method)


def upright(picture: Image.Image) -> Image.Image:
    """``picture`` as it is meant to be seen, by its EXIF, in 8-bit sRGB; see ``to_rgb``."""
    return turn(to_rgb(picture), orientation(picture))


def to_rgb(picture: Image.Image) -> Image.Image:
    """``picture`` as 8-bit sRGB, transparent parts over white. Stored pixels: see ``turn`` for EXIF.

    A colour profile is applied and left out of the result, see ``training_run.colour``. 16-bit grey is scaled by 1/257,
    so that 65535 becomes 255. Raises ``PictureError`` for floating-point pictures, whose scale nobody knows.
    """
    if picture.mode == "F":
        raise PictureError("floating-point picture (mode F): save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        values = np.clip(np.asarray(picture, dtype=np.int32), 0, 65535)
        grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        grey.info = {name: value for name, value in picture.info.items() if name == "icc_profile"}
        picture = grey
    picture = to_srgb(picture)
    if picture.has_transparency_data:
        return over(WHITE, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def over(colour: tuple[int, int, int], picture: Image.Image) -> Image.Image:
    """``picture`` over an even ``colour``, as RGB."""
    rgba = picture.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, colour)
    canvas.paste(rgba, mask=rgba)
    return canvas


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
