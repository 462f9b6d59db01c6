"""Layout: from pictures to the tensors of one training sample, garment left and person right.

Sizes are ``(height, width)``; arrays and tensors have the channel first.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from deepfashion_training.images.masks import align_mask
from deepfashion_training.images.pictures import PictureError, border_colour, opacity, orientation, turn, upright

ResizeMode = Literal["pad", "stretch"]
RESIZE_MODES: tuple[str, ...] = get_args(ResizeMode)

#: How far a channel may lie from the background colour and still be background: JPEG noise around an edge
#: stays below it at the usual qualities, cream on white does not.
BACKGROUND_TOLERANCE = 12

#: Whether this PyTorch has LANCZOS. Where it does not, before 2.13, Pillow resizes.
TORCH_RESIZES = hasattr(torch._C._nn, "_upsample_lanczos2d_aa")


class Box(NamedTuple):
    """Where a resized picture lies on its canvas, in pixels."""

    left: int
    top: int
    width: int
    height: int


def fit_box(source: tuple[int, int], size: tuple[int, int], resize_mode: ResizeMode = "pad") -> Box:
    """Where a picture of ``source`` (height, width) lies on a canvas of ``size`` (height, width).

    ``"pad"`` keeps the aspect and centres the picture; an odd pixel of padding goes to the right or the bottom.
    ``"stretch"`` fills the canvas.
    """
    (source_height, source_width), (height, width) = source, size
    if resize_mode == "stretch":
        return Box(0, 0, width, height)
    scale = min(height / source_height, width / source_width)
    fitted_height = min(height, max(1, round(source_height * scale)))
    fitted_width = min(width, max(1, round(source_width * scale)))
    return Box((width - fitted_width) // 2, (height - fitted_height) // 2, fitted_width, fitted_height)


def _resized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An RGB picture as uint8 ``[3, h, w]`` of ``size``, by LANCZOS; one of that size bit for bit.

    Rows are resized by Pillow, columns by PyTorch in a quarter of Pillow's time, whose weights have 16 bits instead of
    32: no value lies more than one level beside Pillow's. Both passes by PyTorch would make it two.
    """
    height, width = size
    if picture.size != (width, height):
        between = picture.height if TORCH_RESIZES else height
        picture = picture.resize((width, between), Image.Resampling.LANCZOS)
    levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    if picture.height != height:
        levels = torch.nn.functional.interpolate(levels[None], size, mode="lanczos", antialias=True)[0]
    return levels.contiguous().numpy()


def place_picture(picture: Image.Image, size: tuple[int, int], resize_mode: ResizeMode = "pad") -> np.ndarray:
    """An RGB picture on a canvas of ``size``: uint8 ``[3, H, W]``, resized with LANCZOS.

    Padding has the picture's own background colour, see ``pictures.border_colour``.
    """
    box = fit_box((picture.height, picture.width), size, resize_mode)
    fitted = _resized(picture, (box.height, box.width))
    if (box.height, box.width) == tuple(size):
        return fitted
    canvas = np.empty((3, *size), np.uint8)
    canvas[:] = np.array(border_colour(picture), np.uint8)[:, None, None]
    canvas[:, box.top : box.top + box.height, box.left : box.left + box.width] = fitted
    return canvas


def place_mask(mask: np.ndarray, size: tuple[int, int], resize_mode: ResizeMode = "pad") -> np.ndarray:
    """A mask ``[h, w]`` in {0, 1} on a canvas of ``size``: uint8 ``[H, W]`` in {0, 1}, resized with NEAREST.

    It lies where ``place_picture`` puts a picture of the same size; padding is 0.
    """
    box = fit_box(mask.shape, size, resize_mode)
    canvas = np.zeros(size, np.uint8)
    fitted = Image.fromarray(mask).resize((box.width, box.height), Image.Resampling.NEAREST)
    canvas[box.top : box.top + box.height, box.left : box.left + box.width] = np.asarray(fitted)
    return canvas


def garment_mask(placed: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Garment pixels of a placed garment picture ``[3, H, W]`` uint8: bool ``[H, W]``.

    A pixel is garment when any channel is more than ``BACKGROUND_TOLERANCE`` away from ``background``. Parts of
    the garment in the background's own colour are holes.
    """
    garment = np.zeros(placed.shape[1:], bool)
    for channel, colour in zip(placed, background, strict=True):
        lowest, highest = max(colour - BACKGROUND_TOLERANCE, 0), min(colour + BACKGROUND_TOLERANCE, 255)
        # uint8 wraps around below `lowest`, so that one comparison tests both ends.
        garment |= (channel - np.uint8(lowest)) > np.uint8(highest - lowest)
    return garment


def pair_tensors(
    photo: Image.Image, cloth: Image.Image, mask: Image.Image, size: tuple[int, int], resize_mode: ResizeMode = "pad"
) -> dict[str, torch.Tensor]:
    """The tensors of one sample from pictures of any size and mode; ``size`` is (H, W) of one half.

    All float32: ``image`` [3, H, 2W] in [-1, 1], garment left, person right; ``im_mask`` the same with the
    person's masked pixels exactly 0; ``inpaint_mask`` [1, H, 2W] in {0, 1}, 1 = repaint, garment half all 0;
    ``cloth_pure`` [3, H, W] in [-1, 1], a view of the left half of ``image``; ``cloth_mask`` [1, H, W] in
    {0, 1}, 1 = garment (by the alpha channel where the garment picture has one, else by ``garment_mask``).

    Raises ``PictureError`` when the mask has another aspect than the photo, or leaves nothing to repaint.
    """
    height, width = size
    person, upright_mask = align_mask(photo, mask)
    repaint = place_mask(upright_mask, size, resize_mode)
    if not repaint.any():
        raise PictureError("mask is empty: no pixel above half of its scale, so there is nothing to repaint")
    garment = upright(cloth)

    placed = place_picture(garment, size, resize_mode)
    pair = np.concatenate([placed, place_picture(person, size, resize_mode)], axis=2)
    image = torch.from_numpy(pair).float().div_(127.5).sub_(1.0)
    inpaint_mask = torch.zeros(1, height, 2 * width)
    inpaint_mask[0, :, width:] = torch.from_numpy(repaint)
    return {
        "image": image,
        "im_mask": torch.where(inpaint_mask.bool(), 0.0, image),
        "inpaint_mask": inpaint_mask,
        "cloth_pure": image[:, :, :width],
        "cloth_mask": torch.from_numpy(_cloth_mask(cloth, garment, placed, resize_mode)).float()[None],
    }


def _cloth_mask(cloth: Image.Image, garment: Image.Image, placed: np.ndarray, resize_mode: ResizeMode) -> np.ndarray:
    """Garment pixels [H, W] of ``cloth``; ``garment`` is it upright in RGB, ``placed`` is that on its canvas."""
    alpha = opacity(cloth)
    if alpha is None:
        return garment_mask(placed, border_colour(garment))
    visible = turn(Image.fromarray((alpha > 127).view(np.uint8)), orientation(cloth))
    _, height, width = placed.shape
    return place_mask(np.asarray(visible), (height, width), resize_mode)
