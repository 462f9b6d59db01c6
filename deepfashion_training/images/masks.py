"""Masks: from the many ways in which pictures write them to {0, 1}, and from a garment to the area to repaint."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from PIL import Image
from scipy import ndimage

from deepfashion_training.garment_types import FULL, LOWER, UPPER
from deepfashion_training.images.parts import ATR_OF_LIP, ON_THE_PERSON, Mask, protected
from deepfashion_training.images.person import (
    ROWS,
    PersonFrame,
    Values,
    assumed_person,
    grid_size,
    person_of_parse,
    shrink,
    shrunk,
)
from deepfashion_training.images.pictures import PictureError, open_picture, orientation, to_rgb, turn
from deepfashion_training.images.regions import UnresolvedRegionError, garment_region

#: Modes whose values are read as they are; every other mode is brought to RGB or RGBA first.
_SINGLE_CHANNEL_MODES = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")

#: Largest value of a label map (ATR has 18 labels, LIP 20, CIHP 20) and how often neighbours in one may differ.
_LARGEST_LABEL, _MOST_EDGES = 31, 0.25

#: Grid of a mask's features: cells of the picture, each with the share of it that the mask covers.
FEATURE_ROWS, FEATURE_COLUMNS = 24, 16

MaskPolicy = Literal["as_is", "agnostic", "relaxed"]
MASK_POLICIES: tuple[str, ...] = get_args(MaskPolicy)


def decode_mask(mask: Image.Image, cloth_type: int | None = None) -> np.ndarray:
    """Pixels to repaint in a picture of any mode, as uint8 ``[h, w]`` in {0, 1} with 1 = repaint.

    White, or whatever is not zero, means repaint:

    - The largest value tells the scale: up to 1 the mask is 0/1, up to 255 it is 8-bit, else 16-bit. A pixel
      counts when it is above half of the scale, so 8-bit grey needs more than 127 and JPEG noise around black
      stays out.
    - A pixel of a colour picture is as bright as its brightest channel; palettes are looked up first.
    - What an alpha channel hides is not repainted.
    - Whole numbers up to 3 are a label map of garment types: pixels of ``cloth_type`` count where it is given and
      present, else all that are not 0. Whole numbers up to 31 are a label map of parts, of which all that are not
      0 count, where they lie in areas: neighbours in a row differ in less than a quarter of the places. Noise and
      gradients that dark differ nearly everywhere and stay what they are, an 8-bit mask that is black.

    An empty mask is returned as it is: whether that is an error depends on the caller.
    """
    values = mask_values(mask)
    largest = values.max(initial=0)
    if largest > 1 and is_label_map(values, float(largest)):
        chosen = values == cloth_type if largest <= 3 and cloth_type is not None else values > 0
        return (chosen if chosen.any() else values > 0).view(np.uint8)
    scale = scale_of(float(largest))
    # Whole numbers are above the half when they are above the whole number below it; floats would take as long again.
    return (values > (scale // 2 if values.dtype.kind in "iu" else scale / 2)).view(np.uint8)


def align_mask(photo: Image.Image, mask: Image.Image, cloth_type: int | None = None) -> tuple[Image.Image, np.ndarray]:
    """The photo upright as RGB, and its mask uint8 ``[h, w]`` in {0, 1} of the photo's size, pixel on pixel.

    A mask of another size is brought to the photo's with NEAREST when its aspect is the same to within a pixel.
    EXIF turns the photo. Whether the mask was drawn on the photo as seen or on its stored pixels shows in its
    aspect; where both fit (square pictures, mirrored or upside-down ones), as seen. A mask with an orientation
    of its own is turned by that. ``cloth_type`` chooses in label maps, see ``decode_mask``. Raises ``PictureError``
    for a mask of another aspect.
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
    decoded = decode_mask(mask, cloth_type)
    if mask.size != upright.size:
        decoded = np.asarray(Image.fromarray(decoded).resize(upright.size, Image.Resampling.NEAREST))
    return upright, decoded


def is_label_map(values: np.ndarray, largest: float) -> bool:
    """Whether ``values`` [h, w] up to ``largest`` are labels: whole numbers up to 31, and those above 3 in areas."""
    if largest > _LARGEST_LABEL:
        return False
    if values.dtype.kind == "f" and (values % 1).any():
        return False
    return largest <= 3 or float((values[:, 1:] != values[:, :-1]).mean()) < _MOST_EDGES


def scale_of(largest: float) -> int:
    """What white is in a mask whose largest value this is: 1, 255 or 65535."""
    return 1 if largest <= 1 else 255 if largest <= 255 else 65535


def mask_values(mask: Image.Image) -> np.ndarray:
    """One value per pixel ``[h, w]``, in the scale of the source."""
    if mask.mode in _SINGLE_CHANNEL_MODES:
        return np.asarray(mask)
    if not mask.has_transparency_data:
        return np.asarray(mask.convert("RGB")).max(axis=2)
    pixels = np.asarray(mask.convert("RGBA"))
    values, alpha = pixels[..., :3].max(axis=2), pixels[..., 3]
    opaque = alpha.max(initial=0)  # what is transparent shows black
    return values if alpha.min(initial=opaque) == opaque > 0 else values * (alpha / (opaque or 1))


def mask_features(mask: np.ndarray) -> np.ndarray:
    """Share of each of 24 x 16 cells of the picture that a mask ``[h, w]`` in {0, 1} covers: uint8 ``[384]``."""
    picture = Image.fromarray((mask > 0).view(np.uint8) * np.uint8(255))
    return np.asarray(shrunk(picture, (FEATURE_COLUMNS, FEATURE_ROWS))).ravel()


def _same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled and rounded, each side to within a pixel."""
    lowest = max((a - 1) / b for a, b in zip(one, other, strict=True))
    highest = min((a + 1) / b for a, b in zip(one, other, strict=True))
    return lowest <= highest


def repaint_mask(
    region: np.ndarray,
    cloth_type: int,
    person: PersonFrame | None,
    parse: np.ndarray | None = None,
    policy: MaskPolicy = "agnostic",
    seed: int = 0,
) -> np.ndarray:
    """The area to repaint, uint8 ``[h, w]`` in {0, 1}, for the garment in ``region`` (the same shape and range).

    ``person`` is what ``person.find_person`` found, ``parse`` a map ``[h, w]`` of the 18 ATR labels where a human
    parser was run. The policies:

    - ``as_is``: the garment and nothing else, so its outline shows the model what to draw.
    - ``agnostic``: the body parts that a garment of the type could cover, so that trousers, shorts and a skirt on one
      person have nearly the same mask. Every row has one stretch, placed by the person's frame: lower from the waist
      to the ankles, as wide as a skirt and as the stance; upper the torso and the arms down to the hips; full both.
      The stretch grows around a garment that sticks out. Cut out is, with ``parse``, exactly what ``parts.protected``
      names, and else the head where the garment does not lie over it. Without a person the frame is guessed from the
      garment's own box.
    - ``relaxed``: ``agnostic`` with growth, edges and length varied by ``seed``, for training.

    Raises ``ValueError`` for an unknown policy.
    """
    if policy not in MASK_POLICIES:
        raise ValueError(f"unknown mask policy {policy!r}: choose from {', '.join(MASK_POLICIES)}")
    if policy == "as_is":
        return (region > 0).view(np.uint8)
    height, width = region.shape
    cells = shrink(region, grid_size((width, height)))
    if parse is not None:
        person = person_of_parse(parse) or person
    if person is None:
        person = assumed_person(cells > 0.4, cloth_type)
    rng = np.random.default_rng([seed, cloth_type]) if policy == "relaxed" else None
    painted = _between(_stretch(person, cells > 0.3, cloth_type, rng), (height, width))
    if parse is None:
        # With smooth edges, a third of a cell larger.
        head = Image.fromarray(person.head.view(np.uint8) * np.uint8(255))
        painted &= np.asarray(head.resize((width, height), Image.Resampling.BILINEAR)) <= 85
    painted |= region > 0
    if parse is not None:
        painted &= ~protected(parse)
    return painted.view(np.uint8)


def read_parse(stored: bytes | str, size: tuple[int, int] | None = None, *, lip: bool = False) -> np.ndarray:
    """A stored label map upright: ``[h, w]`` of the 18 ATR labels, with ``lip`` made of the 20 labels of LIP.

    ``size`` (width, height) is that of the photo, to which a map of the same aspect is brought with NEAREST. Raises
    ``PictureError`` for what is no map, or one of another aspect.
    """
    try:
        picture = open_picture(stored)
        picture = turn(picture, orientation(picture))
    except PictureError as error:
        raise PictureError(f"label map: {error}") from error
    if size is not None and picture.size != size:
        if not _same_aspect(picture.size, size):
            raise PictureError(f"label map of {picture.size} on a photo of {size}: another aspect")
        picture = picture.resize(size, Image.Resampling.NEAREST)
    labels = np.asarray(picture)
    if labels.ndim != 2 or (lip and labels.max() >= len(ATR_OF_LIP)):
        raise PictureError("label map: it has no number of a label for each pixel")
    return ATR_OF_LIP[labels] if lip else labels


def mask_of_parse(parse: np.ndarray, cloth_type: int) -> np.ndarray:
    """The area to repaint, uint8 ``[h, w]`` in {0, 1}, from a map ``[h, w]`` of the 18 ATR labels alone.

    It is ``repaint_mask`` around the garment of the type that the person wears. Of a person in whom the map shows none
    it is the area that such a garment could cover. Raises ``PictureError`` for a map without a person.
    """
    try:
        region = garment_region(np.isin(parse, ON_THE_PERSON).view(np.uint8), cloth_type, "", None, None, parse).mask
    except UnresolvedRegionError:
        region = np.zeros(parse.shape, np.uint8)
    if not region.any() and person_of_parse(parse) is None:
        raise PictureError("the label map shows no person")
    return repaint_mask(region, cloth_type, None, parse)


#: Half widths of the stretch that each type repaints, by share of the standing height; both in standing heights.
#: They hold a skirt flared to the ankles, and bare shoulders with the room of a loose top.
_WIDTHS: dict[int, tuple[tuple[float, float], ...]] = {
    UPPER: ((0.158, 0.055), (0.175, 0.090), (0.195, 0.120), (0.300, 0.130), (0.572, 0.130)),
    LOWER: ((0.380, 0.110), (0.430, 0.135), (0.530, 0.155), (0.620, 0.175), (0.740, 0.195), (0.965, 0.200)),
}
#: Skirts of dresses are flared more often than skirts: so much wider holds 97 of 100 drawn ones.
_DRESS_WIDTH = 1.08
#: Room around the silhouette's arms, around the feet, and around a garment that sticks out.
_ARM_ROOM, _FOOT_ROOM, _GARMENT_ROOM = 0.032, 0.080, 0.012
#: How far an arm reaches sideways from the middle: stretched out, .19 of upper arm and forearm beyond the shoulder.
_ARM_REACH = 0.28

#: Signs of the left and the right end. How far a stretch reaches is written outwards, so that more is always larger:
#: float32 ``[2, ROWS]`` in grid cells, minus the left end and the right end; -inf in empty rows.
_OUTWARDS = np.array([[-1], [1]], np.float32)


def _stretch(person: PersonFrame, garment: Mask, cloth_type: int, rng: np.random.Generator | None) -> Values:
    """How far each row's stretch reaches; varied where there is a ``rng``."""
    shares, height = person.shares(), person.height * ROWS
    above, below, wider = (0.0, 0.0, np.zeros((2, ROWS), np.float32)) if rng is None else _variation(rng)
    ends = np.full((2, ROWS), -np.inf, np.float32)
    for part in (UPPER, LOWER) if cloth_type == FULL else (cloth_type,):
        reach = (_lower_reach if part == LOWER else _upper_reach)(person, garment, cloth_type)
        inside = (shares >= _WIDTHS[part][0][0] + above) & (shares <= _WIDTHS[part][-1][0] + below)
        ends = np.where(inside, np.maximum(ends, reach), ends)
    ends += wider * height
    worn = _row_ends(garment)
    around = _highest(worn, 0.03 * height)
    ends = np.where(around > ends, around + _GARMENT_ROOM * height, ends)
    return np.maximum(_smoothed(ends, max(1, round(0.02 * height))), worn)


def _variation(rng: np.random.Generator) -> tuple[float, float, Values]:
    """What ``relaxed`` adds above, below and to both sides ``[2, ROWS]``, in standing heights.

    Up to 3% wider or 2% narrower, with edges that wave by 1%.
    """
    rows = np.arange(ROWS) / ROWS
    waves = sum(np.sin(2 * np.pi * (k * rows + rng.random((2, 1)))) * rng.normal(0, 0.006) for k in (1.3, 2.6, 5.2))
    growth, above, below = map(float, rng.uniform((-0.02, -0.02, -0.015), (0.03, 0.015, 0.04)))
    return above, below, np.asarray(waves, np.float32) + growth


def _lower_reach(person: PersonFrame, garment: Mask, cloth_type: int) -> Values:
    """From hips to feet: the middle leans with the stance, and the feet widen the end."""
    shares, height = person.shares(), person.height * ROWS
    hips = _middle(garment, person.silhouette, shares, 0.40, 0.58)
    feet = np.flatnonzero(person.silhouette[(shares > 0.94) & (shares < 1.0)].any(axis=0))
    half = _half_widths(person, LOWER) * np.float32(_DRESS_WIDTH if cloth_type == FULL else 1.0)
    down = np.clip((shares - 0.45) / (0.95 - 0.45), 0, 1)
    centre, reach = np.full(ROWS, hips), half
    if not person.cut_below and len(feet) and feet[-1] - feet[0] < 0.5 * height:
        centre = hips + ((feet[0] + feet[-1] + 1) / 2 - hips) * down
        reach = np.maximum(half, half + ((feet[-1] + 1 - feet[0]) / 2 + _FOOT_ROOM * height - half[-1]) * down)
    # A skirt that sticks out widens the whole side: a bump would show where it ends.
    # Sleeves of a dress hang down to the hips and are no skirt.
    skirt = _row_ends(garment & ((shares > (0.58 if cloth_type == FULL else 0.42)) & (shares < 0.96))[:, None])
    beyond = ((skirt - _OUTWARDS * centre) / reach).max(axis=1, keepdims=True)
    wider = np.where(beyond > 1, np.minimum(beyond + 0.04, 1.6), 1.0)
    return (_OUTWARDS * centre + wider * reach).astype(np.float32)


def _upper_reach(person: PersonFrame, garment: Mask, cloth_type: int) -> Values:
    """From the neck to the hips, around the torso and the arms."""
    shares, height = person.shares(), person.height * ROWS
    middle = _OUTWARDS * _middle(garment, person.silhouette, shares, 0.19, 0.45)
    torso = middle + _half_widths(person, UPPER)
    # Of a dress, what the silhouette shows below the waist is the skirt's form.
    rows = (shares > 0.175) & (shares < (0.46 if cloth_type == FULL else 0.6))
    arms = _row_ends(person.silhouette & rows[:, None])
    # What reaches farther than an arm is a prop that touches the person.
    arms = np.where(arms < middle + _ARM_REACH * height, arms, -np.inf)
    arms = _highest(arms, 0.04 * height) + _ARM_ROOM * height
    return np.where(shares > 0.185, np.maximum(torso, arms), torso).astype(np.float32)


def _half_widths(person: PersonFrame, part: int) -> Values:
    shares, widths = zip(*_WIDTHS[part], strict=True)
    return np.interp(person.shares(), shares, widths).astype(np.float32) * np.float32(person.height * ROWS)


def _middle(garment: Mask, silhouette: Mask, shares: Values, first: float, last: float) -> float:
    """Median column of the garment between two shares of the standing height, or else of the silhouette.

    Props that touch the person shift the silhouette, not the garment.
    """
    inside = ((shares > first) & (shares < last))[:, None]
    cells = next((cells for cells in (garment & inside, silhouette & inside) if cells.any()), silhouette)
    return float(np.median(np.nonzero(cells)[1])) + 0.5


def _row_ends(cells: Mask) -> Values:
    """How far each row of ``cells`` reaches."""
    first, last = cells.argmax(axis=1), cells.shape[1] - cells[:, ::-1].argmax(axis=1)
    return np.where(cells.any(axis=1), np.stack([-first, last]), -np.inf).astype(np.float32)


def _highest(values: Values, reach: float) -> Values:
    """Maximum of ``values`` over ``reach`` rows up and down, one at least."""
    highest: Values = ndimage.maximum_filter1d(values, 2 * max(1, round(reach)) + 1, mode="nearest")
    return highest


def _smoothed(values: Values, reach: int) -> Values:
    """Mean over ``reach`` rows up and down of the rows that have a finite value."""
    finite, window = np.isfinite(values), np.ones(2 * reach + 1)
    total = ndimage.correlate1d(np.where(finite, values, 0).astype(float), window, mode="constant")
    count = ndimage.correlate1d(finite.astype(float), window, mode="constant")
    return np.where(finite, total / np.maximum(count, 1), values).astype(np.float32)


def _between(ends: Values, size: tuple[int, int]) -> Mask:
    """Pixels between the ends of their row: bool ``[h, w]`` of ``size`` (height, width)."""
    height, width = size
    filled = np.flatnonzero(ends.sum(axis=0) > 0)
    painted = np.zeros(size, bool)
    if not len(filled):
        return painted
    first, last = round(filled[0] * height / ROWS), round((filled[-1] + 1) * height / ROWS)
    rows = (np.arange(first, last) + 0.5) * ROWS / height - 0.5
    scale = width / grid_size((width, height))[0]
    columns = np.arange(width, dtype=np.float32) + np.float32(0.5)
    left, right = (np.interp(rows, filled, side[filled]).astype(np.float32) * np.float32(scale) for side in ends)
    painted[first:last] = (columns >= -left[:, None]) & (columns < right[:, None])
    return painted
