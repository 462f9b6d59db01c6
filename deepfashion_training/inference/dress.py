"""One person in one garment: the mask, the pair, the picture that comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepfashion_training.images.layout import CROP_GAIN, Box, ResizeMode, crop_box, pair_tensors, place_mask
from deepfashion_training.images.mask_check import WANTED, area_fault, mask_fault
from deepfashion_training.images.masks import align_mask, repaint_mask
from deepfashion_training.images.parts import ON_THE_PERSON
from deepfashion_training.images.paste import repainted, unplace
from deepfashion_training.images.person import person_of_parse
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.images.regions import UnresolvedRegionError, garment_region
from deepfashion_training.models.fill import FillModel
from deepfashion_training.models.human_parser import HumanParser

#: Largest share of a photo that a parser's own mask may cover: more, and it takes something else for clothes.
LARGEST_MASK_SHARE = 0.9
#: Share of a window that a part of the body covers where it is seen: a foot of a person who fills it.
_A_PART = 0.001
#: Looks at the part around a person at most: the first, in a window, may be far from as close as the parser sees best.
_LOOKS = 3


@dataclass(frozen=True)
class DrawingSettings:
    """How to draw: ``size`` (height, width) of one half of the pair, and what ``FillModel.draw`` takes.

    ``loras`` are names among the model's LoRAs with their scales; without any it is the bare base. ``repaint`` pastes
    the result into the photo, so that nothing beyond the feathered mask changes. ``crop`` draws the part of the photo
    around the mask in place of the whole, where that gains pixels (see ``layout.crop_box``); beyond that part the photo
    stays in any case.
    """

    size: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    loras: dict[str, float] = field(default_factory=dict)
    repaint: bool = True
    resize_mode: ResizeMode = "pad"
    crop: bool = False


def mask_of_type(photo: Image.Image, cloth_type: int, parser: HumanParser) -> np.ndarray:
    """The area to repaint for a garment of the type (1, 2, 3): uint8 ``[h, w]`` in {0, 1} of the upright RGB ``photo``.

    The agnostic mask that training uses by default, from the parser's map. A type that the person does not wear is
    placed by the person's frame alone. Raises ``PictureError`` where nobody is found, or nothing is left to repaint.
    """
    box, parse = _look(photo, parser)
    seen = photo if box is None else photo.crop(box.edges)
    if person_of_parse(parse) is None:
        raise PictureError("the parser finds no person in the photo: take one of a whole body, or pass a mask")
    everything = np.ones(parse.shape, np.uint8)
    try:
        region = garment_region(everything, cloth_type, "", seen, None, parse).mask
    except UnresolvedRegionError:
        region = np.zeros_like(everything)
    mask = repaint_mask(region, cloth_type, None, parse)
    if not mask.any():
        raise PictureError("the part of the body that this garment covers is not in the photo: pass a mask")
    if area_fault(seen, mask) or mask.mean() > LARGEST_MASK_SHARE:
        raise PictureError("the parser finds no plausible area of clothes: take a photo of one person, or pass a mask")
    if box is None:
        return mask
    whole = np.zeros((photo.height, photo.width), np.uint8)
    _cut(whole, box)[:] = mask
    return whole


def _look(photo: Image.Image, parser: HumanParser) -> tuple[Box | None, np.ndarray]:
    """The part of an upright RGB ``photo`` with the person in it, None for the whole, and its parse map ``[h, w]``.

    A parser squeezes whatever it gets into one size, in which somebody who is small in the photo is hard to see, and
    somebody in a panorama is squeezed: it gets the part around the person that it saw first, and again until that part
    stays the same. Of a panorama it first sees windows, of which the one with most parts of a body
    in it has the person.
    """
    size, windows = (photo.height, photo.width), _windows((photo.height, photo.width))
    if not windows:
        box, parse = None, parser.parse([photo])[0]
    else:
        looks = parser.parse([photo.resize(parser.size[::-1], Image.Resampling.BILINEAR, one.edges) for one in windows])
        best = int(np.argmax([(np.bincount(look.ravel()) > look.size * _A_PART).sum() for look in looks]))
        box, parse = windows[best], looks[best]
    for _ in range(_LOOKS):
        person, seen = np.zeros(size, np.uint8), box or Box(0, 0, photo.width, photo.height)
        found = Image.fromarray(np.isin(parse, ON_THE_PERSON).view(np.uint8))
        _cut(person, seen)[:] = found.resize((seen.width, seen.height), Image.Resampling.NEAREST)
        near = crop_box(person, parser.size, "stretch")
        if near == box and parse.shape == (seen.height, seen.width):  # and no smaller, as of a window
            break
        box, parse = near, parser.parse([photo if near is None else photo.crop(near.edges)])[0]
    return box, parse


def _windows(size: tuple[int, int]) -> list[Box]:
    """Windows of 4:3 on a photo of ``size`` (height, width) of more than twice their area, a quarter of one apart."""
    height, width = min(size[0], size[1] * 4 // 3), min(size[1], size[0] * 3 // 4)
    if size[0] * size[1] <= CROP_GAIN * height * width:
        return []
    rows, columns = (
        np.linspace(0, whole - part, 1 + math.ceil(4 * (whole - part) / part)).astype(int).tolist()
        for whole, part in zip(size, (height, width), strict=True)
    )
    return [Box(left, top, width, height) for top in rows for left in columns]


def mask_given(photo: Image.Image, mask: Image.Image, cloth_type: int | None) -> np.ndarray:
    """A mask in any form (see ``masks.decode_mask``) as uint8 ``[h, w]`` in {0, 1} of the photo as it is seen.

    ``photo`` is as it was opened, not yet upright: the mask may have been drawn on its stored pixels. Raises
    ``PictureError`` for one of another aspect, an empty one, and a picture that is no mask (see ``mask_check``).
    """
    upright, decoded = align_mask(photo, mask, cloth_type)
    if not decoded.any():
        raise PictureError(f"it is empty: {WANTED}")
    if fault := mask_fault(upright, mask, decoded):
        raise PictureError(str(fault))
    return decoded


def crop_of(mask: np.ndarray, settings: DrawingSettings) -> Box | None:
    """The part of the photo that is drawn for a ``mask`` [h, w] in {0, 1}; None where that is the whole."""
    return crop_box(mask, settings.size, settings.resize_mode) if settings.crop else None


def crop_record(masks: Sequence[np.ndarray], settings: DrawingSettings) -> dict[str, Any]:
    """What a picture's record says of the crops for the masks of its garments, ``crop``, ``crop_2``...

    A crop's edges; False where none was wanted, and nothing where none gains.
    """
    if not settings.crop:
        return {"crop": False}
    boxes = {
        f"crop_{number}" if number > 1 else "crop": crop_of(mask, settings) for number, mask in enumerate(masks, 1)
    }
    return {name: list(box.edges) for name, box in boxes.items() if box}


def crop_lines(masks: Sequence[np.ndarray], settings: DrawingSettings) -> list[str]:
    """A line for each crop that is taken; none for a photo that is drawn whole."""
    return [
        f"crop      {box.width}x{box.height} at {box.left},{box.top} of the {mask.shape[1]}x{mask.shape[0]} photo, "
        "pasted back"
        for mask in masks
        if (box := crop_of(mask, settings))
    ]


def check_left(mask: np.ndarray, settings: DrawingSettings) -> None:
    """Raise ``PictureError`` when nothing of ``mask`` [h, w] is left in the size that the model draws at."""
    height, width = settings.size
    drawn = _cut(mask, crop_of(mask, settings))
    if not place_mask(drawn, settings.size, settings.resize_mode).any():
        raise PictureError(f"the mask is so small that nothing of it is left at {height}x{width} (height x width)")


def _cut(mask: np.ndarray, box: Box | None) -> np.ndarray:
    return mask if box is None else mask[box.top : box.top + box.height, box.left : box.left + box.width]


def dress(
    model: FillModel,
    photo: Image.Image,
    garment: Image.Image,
    mask: np.ndarray,
    settings: DrawingSettings,
    prompt: str,
    seed: int,
    on_step: Callable[[int], object] | None = None,
) -> tuple[Image.Image, Image.Image]:
    """Draw the person of an upright RGB ``photo`` in ``garment`` (any mode), where ``mask`` is 1.

    ``mask`` is uint8 [h, w] in {0, 1} of the photo's size. Returns the picture, RGB of the photo's size, and the pair
    as the model drew it, garment beside person. Raises ``PictureError`` as ``check_left`` does.
    """
    check_left(mask, settings)
    box = crop_of(mask, settings)
    if box is None:
        return _dress_whole(model, photo, garment, mask, settings, prompt, seed, on_step)
    part, pair = _dress_whole(model, photo.crop(box.edges), garment, _cut(mask, box), settings, prompt, seed, on_step)
    whole = photo.copy()
    whole.paste(part, (box.left, box.top))
    return whole, pair


def _dress_whole(
    model: FillModel,
    photo: Image.Image,
    garment: Image.Image,
    mask: np.ndarray,
    settings: DrawingSettings,
    prompt: str,
    seed: int,
    on_step: Callable[[int], object] | None,
) -> tuple[Image.Image, Image.Image]:
    """``dress`` without a crop."""
    area = Image.fromarray(mask * np.uint8(255))
    sample = pair_tensors(photo, garment, area, settings.size, settings.resize_mode)
    drawn = model.draw(
        [sample],
        [seed],
        prompts=[prompt],
        steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        loras=settings.loras,
        on_step=on_step,
    )[0]
    pair = picture_of(drawn)
    height, width = settings.size
    person_half = pair.crop((width, 0, 2 * width, height))
    result = unplace(person_half, mask.shape, settings.resize_mode)
    return repainted(photo, result, mask) if settings.repaint else result, pair


def picture_of(drawn: torch.Tensor) -> Image.Image:
    """RGB picture of a tensor [3, H, W] in [0, 1]."""
    levels = (drawn.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
