"""Quality gates: what would poison training, each with its reason, and how well a garment picture fits its photo."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from deepfashion_training.images.pictures import border_colour, box_of

#: Why a row is quarantined, as preparation counts it -> a sentence for people.
REASONS: dict[str, str] = {
    "unreadable_photo": "The person's photo is missing, truncated or in a format that cannot be read.",
    "unreadable_mask": "The mask is missing, truncated or in a format that cannot be read.",
    "unreadable_garment": "The garment picture of the cloth column is missing, truncated or cannot be read.",
    "decompression_bomb": "A picture has more pixels than can be opened safely.",
    "mask_empty": "The mask is empty, so there is nothing to repaint.",
    "mask_too_large": "The mask covers nearly the whole photo, so that nothing of the person is left to keep.",
    "no_mask": "The picture in the mask column is another kind of picture, such as a photo or a parser's colours.",
    "mask_size": "The mask has another aspect than the photo, so it cannot belong to it.",
    "garment_too_small": "The garment covers too few pixels of the photo to learn from.",
    "product_shot": "The photo shows a garment alone where a person is expected.",
    "near_duplicate": "Nearly the same photo is in another split.",
    "blank_garment": "The garment picture shows one flat colour.",
    "unknown_category": "The category is not a known one, and no override gives its type.",
    "undecided_type": "The category leaves the garment's type open, and so does the caption.",
    "unknown_pose": "The pose does not say variant and view in a known form.",
    "no_pid": "The row does not say who is in the photo, so no split can keep it away from the others.",
    "union_mask": "The mask covers all clothes and cannot be restricted to the named garment.",
}

#: Flag of preparation that lets more rows pass, by the reason.
FIXES: dict[str, str] = {
    "decompression_bomb": "--max_megapixels",
    "mask_too_large": "--max_mask_share",
    "garment_too_small": "--min_garment_px",
    "blank_garment": "--min_garment_contrast",
    "unknown_category": "--category_type NAME=TYPE",
    "undecided_type": "--category_type NAME=TYPE",
    "no_garment_picture": "--garment_sources",
    "same_photo_share": "--max_same_photo_share",
}

#: Why a good row is no pair of its own -> a sentence for people.
UNPAIRED_REASONS: dict[str, str] = {
    "garment_picture": "The photo shows the garment alone: it serves other rows as their garment picture.",
    "no_garment_picture": "No other photo of this outfit shows the garment from a fitting view.",
    "same_photo_share": "Its only garment picture would be cut from the same photo, and the share of those is full.",
}

#: Pictures are judged by this many points along their shorter side. Single pixels, not means: they are ten times
#: faster to get, and keep the colours of small patterns apart.
_SHORT_SIDE = 64
#: A pixel is background when no channel is further than this from the colour of the border.
_BACKGROUND_TOLERANCE = 16
#: The same for garment pictures, whose background is even: a white shirt on white differs by its shadows only.
_EVEN_TOLERANCE = 6
#: Share of a garment picture that has to contrast with its border.
_CONTRASTING_SHARE = 0.01
#: ATR labels of what only a person has: hair, face, legs and arms.
_PERSON_LABELS = (2, 11, 12, 13, 14, 15)


def _gate(default: float, about: str, least: float = 0, most: float = math.inf) -> Any:
    """A threshold with the text that explains it, as a flag shows it, and the range in which it makes sense."""
    return field(default=default, metadata={"help": about, "range": (least, most)})


@dataclass(frozen=True)
class Gates:
    """Thresholds of the quality gates; each has ``metadata``: its explanation ``help`` and its ``range``.

    A full-body agnostic mask of a close photo stays below 0.7 of the picture. 64 pixels are four tokens of FLUX, which
    are 16 pixels wide. Of what differs from the background, drawn garments laid flat have nothing outside of their
    masks, and people in masks of all their clothes at least 0.0097. Distances: see ``data.near_duplicates``.
    """

    max_mask_share: float = _gate(0.9, "largest share of the photo that a mask may cover", most=1)
    min_garment_px: int = _gate(64, "shortest side of the garment's box in the photo, in pixels")
    min_garment_contrast: int = _gate(10, "levels of 255 by which a garment picture must differ from its background")
    max_person_free_share: float = _gate(
        0.005, "a photo with less of its foreground outside of the mask shows no person, and is left out", most=1
    )
    max_megapixels: int = _gate(80, "largest picture that is opened, in millions of pixels", least=1)
    near_duplicate_distance: int = _gate(
        24, "photos of two splits that differ in at most so many of 256 hash bits count as the same"
    )

    def __post_init__(self) -> None:
        for gate in fields(self):
            value, (least, most) = getattr(self, gate.name), gate.metadata["range"]
            if not least <= value <= most:
                raise ValueError(f"{gate.name} {value}: a number from {least} to {most} is needed")


class Finding(NamedTuple):
    """Why something fails a gate: one of ``REASONS``, and the figures."""

    reason: str
    detail: str


def check_mask(mask: np.ndarray, gates: Gates) -> Finding | None:
    """What is wrong with a mask ``[h, w]`` in {0, 1}: ``mask_empty`` or ``mask_too_large``."""
    share = np.count_nonzero(mask) / mask.size
    if share == 0:
        return Finding("mask_empty", "no pixel to repaint")
    if share > gates.max_mask_share:
        return Finding("mask_too_large", f"{share:.1%} of the photo, at most {gates.max_mask_share:.0%} may be")
    return None


def check_region(region: np.ndarray, gates: Gates) -> Finding | None:
    """``garment_too_small`` for a garment region ``[h, w]`` in {0, 1} whose box has too short a side."""
    left, top, right, bottom = box_of(region) or (0, 0, 0, 0)
    width, height = right - left, bottom - top
    if min(height, width) < gates.min_garment_px:
        return Finding("garment_too_small", f"{width}x{height} pixels, at least {gates.min_garment_px} each are needed")
    return None


def check_garment(garment: Image.Image, gates: Gates) -> Finding | None:
    """``blank_garment`` for an RGB garment picture that hardly differs from the colour of its border anywhere."""
    share = (_distance(_sampled(garment), border_colour(garment)) >= gates.min_garment_contrast).mean()
    if share < _CONTRASTING_SHARE:
        return Finding("blank_garment", f"{share:.1%} of it differs from its border, {_CONTRASTING_SHARE:.0%} has to")
    return None


def looks_like_product_shot(
    photo: Image.Image, mask: np.ndarray, parse: np.ndarray | None, gates: Gates
) -> Finding | None:
    """``product_shot`` for an RGB photo that shows a garment alone.

    ``mask`` is ``[h, w]`` in {0, 1}, the clothes; ``parse`` the ATR labels ``[h, w]`` of a parser, if there is one.
    With it, a product shot has no face, hair, arms or legs. Without, nearly everything that differs from the colour
    of the border lies inside the mask, grown by a 64th of the shorter side; people show skin, hair and shoes outside
    of it, whatever they wear and wherever the photo is cropped. Busy backgrounds count as outside: a doubt is for
    the photo.
    """
    if parse is not None:
        share = np.isin(parse, _PERSON_LABELS).mean()
        if share < 0.001:
            return Finding("product_shot", f"the parser sees no face, hair, arms or legs ({share:.2%} of the photo)")
        return None
    foreground = _distance(_sampled(photo), border_colour(photo)) > _BACKGROUND_TOLERANCE
    outside = foreground & ~ndimage.binary_dilation(_sampled_mask(mask), np.ones((3, 3)))
    share = outside.sum() / max(foreground.sum(), 1)
    if foreground.any() and share < gates.max_person_free_share:
        return Finding("product_shot", f"{share:.1%} of what is seen lies outside the mask: no person shows")
    return None


def colour_likeness(garment: Image.Image, photo: Image.Image, region: np.ndarray) -> float:
    """How alike the colours of a garment picture and of the worn garment are, 0 to 1; 0 for an empty region.

    ``garment`` and ``photo`` are RGB, ``region`` ``[h, w]`` in {0, 1} is the garment in the photo. Intersection of
    two histograms of lightness and chroma (YCbCr), smoothed so that another light costs little, without the garment
    picture's background. It ranks pairs; it is no probability.
    """
    inside = _sampled_mask(region)
    if not inside.any():
        return 0.0
    picture = _sampled(garment)
    shown = _distance(picture, border_colour(garment)) > _EVEN_TOLERANCE
    colours = picture[shown] if shown.any() else picture.reshape(-1, 3)
    return float(np.minimum(_histogram(colours), _histogram(_sampled(photo)[inside])).sum())


#: Bins of a colour histogram: lightness, then the two chromas; and the weights that spread each over its neighbours.
_BINS = (8, 32, 32)
_SPREAD = np.array([1, 4, 6, 4, 1]) / 16


def _histogram(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Smoothed histogram in YCbCr of RGB colours ``[n, 3]``, sum 1."""
    ycbcr = np.asarray(Image.fromarray(colours[None]).convert("YCbCr"))[0]
    places = ycbcr.astype(np.int64) * _BINS >> 8
    counts = np.bincount(np.ravel_multi_index(tuple(places.T), _BINS), minlength=math.prod(_BINS)).reshape(_BINS)
    shares: npt.NDArray[np.float64] = counts / len(colours)
    for axis in range(3):
        shares = ndimage.correlate1d(shares, _SPREAD, axis)
    return shares


def _sampled(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels of a picture on an even grid: uint8 ``[h, w]`` or ``[h, w, 3]``, the shorter side ``_SHORT_SIDE``."""
    scale = min(1.0, _SHORT_SIDE / min(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def _sampled_mask(mask: np.ndarray) -> npt.NDArray[np.bool_]:
    return _sampled(Image.fromarray(mask.astype(np.uint8, copy=False))) > 0


def _distance(small: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> npt.NDArray[np.int16]:
    """How far each pixel's furthest channel lies from ``colour``: ``[h, w]``."""
    distance: npt.NDArray[np.int16] = np.abs(small.astype(np.int16) - np.array(colour, np.int16)).max(axis=-1)
    return distance
