"""Which garment: from a mask that may cover all clothes to the region of the garment that the row names.

With a parse map the region is what it says. Without one, a mask that reaches where the named type cannot be is the
union of all clothes, and is cut at the waist, where the colours change most; or the row is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from deepfashion_training.garment_types import FULL, LONG_TOPS, LOWER, TYPE_NAMES, UPPER
from deepfashion_training.images.parts import GARMENT_LABELS, ON_THE_PERSON
from deepfashion_training.images.person import ROWS, PersonFrame, Values, grid_size, shrink, shrunk

#: A lower-body mask that starts above this share of the standing height holds a top too: the natural waist is at
#: .38 to .42, and no waistband reaches the ribs.
HIGHEST_WAISTBAND = 0.33
#: A top that ends below this share may be a long one, or the mask holds trousers too: the crotch is at .53.
LOWEST_HEM = 0.575
#: Where the cut may lie: from a tucked waist to the hem of a long sweater.
CUT_RANGE = (0.37, 0.57)
#: Entropy of the colours, in nats per cell, that a cut has to explain to count as a change of garment.
CLEAR_CHANGE = 0.16
#: Smallest part of the named garment in a parse map: shares of all clothes and skin, and of the person's height.
LEAST_AREA, LEAST_HEIGHT = 0.06, 0.08


class UnresolvedRegionError(ValueError):
    """The named garment's region cannot be found, so the row has to be left out: why, in one line."""


class Region(NamedTuple):
    """Where the named garment is."""

    mask: np.ndarray  # uint8 [h, w] in {0, 1}
    how: str  # "named": the mask as it came; "restricted": cut out of a union; "parsed": from the parse map


def garment_region(
    mask: np.ndarray,
    cloth_type: int,
    category: str,
    photo: Image.Image | None,
    person: PersonFrame | None,
    parse: np.ndarray | None = None,
) -> Region:
    """The region of a garment of ``cloth_type`` (1, 2, 3) within ``mask``, uint8 ``[h, w]`` in {0, 1}.

    ``photo`` is upright RGB, perhaps shrunk, ``person`` what ``find_person`` found in it, ``parse`` a map
    ``[h, w]`` of the 18 ATR labels, beside which both are not needed. Raises ``UnresolvedRegionError`` when the mask is
    empty, when nothing of the type is in the parse map, and when an upper or lower mask comes without a person to
    measure it against.
    """
    if not mask.any():
        raise UnresolvedRegionError("the mask is empty")
    if parse is not None:
        return _parsed(mask, cloth_type, parse)
    if cloth_type == FULL:
        return Region(mask, "named")
    if person is None:
        raise UnresolvedRegionError(
            f"no person found, so the mask may cover more than the {TYPE_NAMES[cloth_type]} garment"
        )
    assert photo is not None
    rows = np.flatnonzero(mask.any(axis=1))
    first, last = person.share(rows[0] / len(mask)), person.share((rows[-1] + 1) / len(mask))
    cut, change = _cut(mask, photo, person)
    if cloth_type == LOWER:
        is_union = first < HIGHEST_WAISTBAND
    else:
        # Where the picture ends above the feet, the standing height is a guess: of seven real photos cut at the hips
        # three tops seemed to end at .61 of it.
        may_be_long = category in LONG_TOPS or person.cut_below
        is_union = last > LOWEST_HEM and (change > CLEAR_CHANGE or not may_be_long)
    if not is_union:
        return Region(mask, "named")
    region = mask.copy()
    row = round(cut * len(mask))
    region[slice(row) if cloth_type == LOWER else slice(row, None)] = 0
    if not region.any():
        raise UnresolvedRegionError(f"nothing of the mask lies where a {TYPE_NAMES[cloth_type]} garment is worn")
    return Region(region, "restricted")


def worn_region(parse: np.ndarray, cloth_type: int) -> np.ndarray | None:
    """Region of the garment of a type in a parse map ``[h, w]`` of the 18 ATR labels: uint8 ``[h, w]`` in {0, 1}.

    ``None`` where it is too small to learn from: below ``LEAST_AREA`` of the person or ``LEAST_HEIGHT`` of the person's
    height.
    """
    person, region = np.isin(parse, ON_THE_PERSON), np.isin(parse, GARMENT_LABELS[cloth_type])
    high = region.any(axis=1).sum() > LEAST_HEIGHT * np.count_nonzero(person.any(axis=1))
    return region.view(np.uint8) if high and region.sum() > LEAST_AREA * person.sum() else None


def _parsed(mask: np.ndarray, cloth_type: int, parse: np.ndarray) -> Region:
    region = np.isin(parse, GARMENT_LABELS[cloth_type]) & (mask > 0)
    if cloth_type == FULL:  # parsers see some jumpsuits, and dresses with a seam, as a top and a bottom
        parts = np.isin(parse, (*GARMENT_LABELS[UPPER], *GARMENT_LABELS[LOWER])) & (mask > 0)
        if region.sum() < parts.sum():
            region |= parts
    if not region.any():
        raise UnresolvedRegionError(f"the parser finds no {TYPE_NAMES[cloth_type]} garment under the mask")
    return Region(region.view(np.uint8), "parsed")


def _cut(mask: np.ndarray, photo: Image.Image, person: PersonFrame) -> tuple[float, float]:
    """Where colours within ``mask`` change most near the waist: row as a share of the picture, nats explained."""
    size = grid_size((mask.shape[1], mask.shape[0]))
    rows, columns = np.nonzero(shrink(mask, size) > 0.5)
    bins = (np.asarray(shrunk(photo, size)) // 52).astype(np.int64) @ np.array([25, 5, 1])  # 5 levels a channel
    counts = np.bincount(rows * 125 + bins[rows, columns], minlength=ROWS * 125).reshape(ROWS, 125)
    first, last = np.searchsorted(person.shares(), (0.2, 0.75))
    above = np.concatenate([np.zeros((1, 125)), np.cumsum(counts[first:last], axis=0)])
    edges = (np.arange(first, last + 1) / ROWS - person.crown) / person.height
    inside = (edges >= CUT_RANGE[0]) & (edges <= CUT_RANGE[1])
    explained = _entropy(above[-1:]) - _entropy(above) - _entropy(above[-1] - above)
    if not inside.any() or not explained.any():
        return person.crown + 0.43 * person.height, 0.0
    best = int(np.argmax(np.where(inside, explained, -np.inf)))
    return (first + best) / ROWS, float(explained[best] / above[-1].sum())


def _entropy(counts: Values) -> Values:
    """Entropy in nats times the number of cells, of each row of counts."""
    total = counts.sum(axis=1)
    return total * np.log(np.maximum(total, 1)) - (counts * np.log(np.maximum(counts, 1))).sum(axis=1)
