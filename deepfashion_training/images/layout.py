"""Layout: from pictures to the tensors of one training sample, garment left and person right.

Sizes are ``(height, width)``; arrays and tensors have the channel first.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from deepfashion_training.images.masks import align_mask
from deepfashion_training.images.pictures import (
    PictureError,
    border_colour,
    box_of,
    opacity,
    orientation,
    turn,
    upright,
)

ResizeMode = Literal["pad", "stretch"]
RESIZE_MODES: tuple[str, ...] = get_args(ResizeMode)

#: How far a channel may lie from the background colour and still be background: JPEG noise around an edge
#: stays below it at the usual qualities, cream on white does not.
BACKGROUND_TOLERANCE = 12

#: Whether this PyTorch has LANCZOS. Where it does not, before 2.13, Pillow resizes.
TORCH_RESIZES = hasattr(torch._C._nn, "_upsample_lanczos2d_aa")


#: Share of a crop's height and width that the area to repaint takes, and the share of the remaining height above it:
#: without legs, and with legs, whose mask is more than ``CROP_LEGS`` as high as wide. So the crop shows the half of the
#: body that the garment is on, as photos of shops and the model's training pairs do. Of drawn people in larger photos,
#: looser crops and the middle in place of these shares came out worse. With legs, .70 is best for trousers and skirts,
#: .80 for dresses; between them neither loses (50 and 60 drawn people of each, LoRA of the quick test).
CROP_HEIGHT, CROP_WIDTH = 0.77, 0.7
CROP_ABOVE, CROP_ABOVE_LEGS, CROP_LEGS = 0.65, 0.73, 1.35
#: A crop is taken where one of the whole person would already be drawn with so many times the pixels: masks of all
#: three types are about .4 of the standing height wide, those of dresses .8 high, so that person is as large as this
#: share of mask to picture says. Of a person who fills the photo it gains 1.6 at most, and the photo stays whole.
CROP_GAIN = 2.0
PERSON_HEIGHT, PERSON_WIDTH = 0.75, 0.5
#: Least room on each side, as a share of the longer side: a seam reaches .015 (``paste.SEAM``).
CROP_ROOM = 0.02


class Box(NamedTuple):
    """Where a resized picture lies on its canvas, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow crops."""
        return self.left, self.top, self.left + self.width, self.top + self.height


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


def crop_box(mask: np.ndarray, size: tuple[int, int], resize_mode: ResizeMode = "pad") -> Box | None:
    """Which part of a photo to lay out in its place, so that what is repainted is drawn with more pixels.

    ``mask`` is the area to repaint, ``[h, w]`` in {0, 1} of the photo's size, ``size`` that of the canvas. The box
    holds the mask with room around it. It has exactly the canvas's aspect, so that it fills the canvas without padding,
    wherever a box of that aspect in the photo holds the mask. None where the photo has no side longer than the canvas's
    or the mask is empty, and where a crop gains less than ``CROP_GAIN``.
    """
    whole, edges = mask.shape, box_of(mask)
    if edges is None or (whole[0] <= size[0] and whole[1] <= size[1]):
        return None
    left, top, right, bottom = edges
    # Whole multiples of this cell have the canvas's aspect.
    cell = (size[0] // math.gcd(*size), size[1] // math.gcd(*size))
    most = min(whole[0] // cell[0], whole[1] // cell[1])

    def part(height_share: float, width_share: float) -> tuple[int, int]:
        """Height and width of the crop in which the mask takes these shares."""
        count = math.ceil(max((bottom - top) / height_share / cell[0], (right - left) / width_share / cell[1]))
        if count > most:  # less room is better than padding, as long as the seam has its place
            near = box_of(mask, room=math.ceil(CROP_ROOM * most * max(cell)))
            assert near is not None
            if near[3] - near[1] <= most * cell[0] and near[2] - near[0] <= most * cell[1]:
                count = most
        return min(whole[0], count * cell[0]), min(whole[1], count * cell[1])

    gain = _enlargement(part(PERSON_HEIGHT, PERSON_WIDTH), size, resize_mode) / _enlargement(whole, size, resize_mode)
    if gain < CROP_GAIN:
        return None
    height, width = part(CROP_HEIGHT, CROP_WIDTH)
    above = CROP_ABOVE_LEGS if bottom - top > CROP_LEGS * (right - left) else CROP_ABOVE
    x = min(max(0, (left + right - width) // 2), whole[1] - width)
    y = min(max(0, round(top - above * (height - (bottom - top)))), whole[0] - height)
    return Box(x, y, width, height)


def _enlargement(source: tuple[int, int], size: tuple[int, int], resize_mode: ResizeMode) -> float:
    """Pixels of the canvas for each pixel of a picture of ``source`` that is placed on it."""
    box = fit_box(source, size, resize_mode)
    return box.height * box.width / (source[0] * source[1])


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
