"""Masks: from the many ways in which pictures write them to {0, 1}."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deepfashion_training.pairs.pictures import PictureError, orientation, to_rgb, turn

#: Modes whose values are read as they are; every other mode is brought to RGB or RGBA first.
_SINGLE_CHANNEL_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")


def decode_mask(mask: Image.Image | np.ndarray) -> np.ndarray:
    """Pixels to repaint, as uint8 ``[h, w]`` in {0, 1} with 1 = repaint.

    ``mask`` is a Pillow picture of any mode, or an array ``[h, w]``, ``[h, w, 1]``, ``[h, w, 3]`` (RGB) or
    ``[h, w, 4]`` (RGBA) of bool, integers or floats. White, or whatever is not zero, means repaint:

    - The largest value tells the scale: up to 1 the mask is 0/1, up to 255 it is 8-bit, else 16-bit. A pixel
      counts when it is above half of the scale, so 8-bit grey needs more than 127 and JPEG noise around black
      stays out.
    - A pixel of a colour picture is as bright as its brightest channel; palettes are looked up first.
    - What an alpha channel hides is not repainted.

    Raises ``ValueError`` for an array of another shape. An empty mask is returned as it is: whether that is
    an error depends on the caller.
    """
    values = _values(mask)
    largest = values.max(initial=0)
    scale = 1 if largest <= 1 else 255 if largest <= 255 else 65535
    return (values > scale / 2).view(np.uint8)


def align_mask(photo: Image.Image, mask: Image.Image) -> tuple[Image.Image, np.ndarray]:
    """The photo upright as RGB, and its mask uint8 ``[h, w]`` in {0, 1} of the photo's size, pixel on pixel.

    A mask of another size is brought to the photo's with NEAREST when its aspect is the same to within a pixel.
    EXIF turns the photo. Whether the mask was drawn on the photo as seen or on its stored pixels shows in its
    aspect; where both fit (square pictures, mirrored or upside-down ones), as seen. A mask with an orientation
    of its own is turned by that. Raises ``PictureError`` for a mask of another aspect.
    """
    turned = orientation(photo)
    upright = turn(to_rgb(photo), turned)
    own = orientation(mask)
    mask = turn(mask, own)
    if not _same_aspect(mask.size, upright.size):
        if own != 1 or not _same_aspect(mask.size, photo.size):
            raise PictureError(
                f"mask of {mask.width}x{mask.height} on a photo of {upright.width}x{upright.height}: another aspect"
            )
        mask = turn(mask, turned)
    decoded = decode_mask(mask)
    if mask.size != upright.size:
        decoded = np.asarray(Image.fromarray(decoded).resize(upright.size, Image.Resampling.NEAREST))
    return upright, decoded


def _values(mask: Image.Image | np.ndarray) -> np.ndarray:
    """One value per pixel ``[h, w]``, in the scale of the source."""
    if isinstance(mask, Image.Image):
        if mask.mode not in _SINGLE_CHANNEL_MODES:
            mask = mask.convert("RGBA" if mask.has_transparency_data else "RGB")
        mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[2] == 4:
        return _over_black(mask[..., :3].max(axis=2), mask[..., 3])
    if mask.ndim == 3 and mask.shape[2] in (1, 3):
        return mask.max(axis=2)
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape}: pass [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]")
    return mask


def _over_black(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``values`` seen through ``alpha`` over black, so that a transparent pixel is 0."""
    opaque = alpha.max(initial=0)
    if alpha.min(initial=opaque) == opaque:
        return values
    return values * (alpha / opaque)


def _same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled and rounded, each side to within a pixel."""
    lowest = max((a - 1) / b for a, b in zip(one, other, strict=True))
    highest = min((a + 1) / b for a, b in zip(one, other, strict=True))
    return lowest <= highest
