"""One person in one garment: the mask, the pair, the picture that comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from deepfashion_training.images.layout import ResizeMode, pair_tensors, place_mask
from deepfashion_training.images.mask_check import WANTED, area_fault, mask_fault
from deepfashion_training.images.masks import align_mask, repaint_mask
from deepfashion_training.images.paste import repainted, unplace
from deepfashion_training.images.person import person_of_parse
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.images.regions import UnresolvedRegionError, garment_region
from deepfashion_training.models.fill import FillModel
from deepfashion_training.models.human_parser import HumanParser

#: Largest share of a photo that a parser's own mask may cover: more, and it takes something else for clothes.
LARGEST_MASK_SHARE = 0.9


@dataclass(frozen=True)
class DrawingSettings:
    """How to draw: ``size`` (height, width) of one half of the pair, and what ``FillModel.draw`` takes.

    ``loras`` are names among the model's LoRAs with their scales; without any it is the bare base. ``repaint`` pastes
    the result into the photo, so that nothing beyond the feathered mask changes.
    """

    size: tuple[int, int]
    num_inference_steps: int
    guidance_scale: float
    loras: dict[str, float] = field(default_factory=dict)
    repaint: bool = True
    resize_mode: ResizeMode = "pad"


def mask_of_type(photo: Image.Image, cloth_type: int, parser: HumanParser) -> np.ndarray:
    """The area to repaint for a garment of the type (1, 2, 3): uint8 ``[h, w]`` in {0, 1} of the upright RGB ``photo``.

    The agnostic mask that training uses by default, from the parser's map. A type that the person does not wear is
    placed by the person's frame alone. Raises ``PictureError`` where nobody is found, or nothing is left to repaint.
    """
    parse = parser.parse([photo])[0]
    if person_of_parse(parse) is None:
        raise PictureError("the parser finds no person in the photo: take one of a whole body, or pass a mask")
    everything = np.ones(parse.shape, np.uint8)
    try:
        region = garment_region(everything, cloth_type, "", photo, None, parse).mask
    except UnresolvedRegionError:
        region = np.zeros_like(everything)
    mask = repaint_mask(region, cloth_type, None, parse)
    if not mask.any():
        raise PictureError("the part of the body that this garment covers is not in the photo: pass a mask")
    if area_fault(photo, mask) or mask.mean() > LARGEST_MASK_SHARE:
        raise PictureError("the parser finds no plausible area of clothes: take a photo of one person, or pass a mask")
    return mask


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


def check_left(mask: np.ndarray, settings: DrawingSettings) -> None:
    """Raise ``PictureError`` when nothing of ``mask`` [h, w] is left in the size that the model draws at."""
    height, width = settings.size
    if not place_mask(mask, settings.size, settings.resize_mode).any():
        raise PictureError(f"the mask is so small that nothing of it is left at {height}x{width} (height x width)")


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
