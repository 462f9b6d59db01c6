"""Where a person stands in a photo, found without a model: frame, silhouette and head on a small grid.

Everything is measured on a grid of ``ROWS`` rows, so that a photo of any size costs the same millisecond or two.
Shares of a person's standing height, counted from the top of the head, follow Drillis and Contini, "Body segment
parameters" (1966): chin .13, shoulders .18, waist .38 to .42, crotch .53, knee .72, ankle .96; a hand is .108 long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from deepfashion_training.garment_types import LOWER
from deepfashion_training.images.parts import HEAD_LABELS, ON_THE_PERSON, Mask

Values = npt.NDArray[np.float32]

#: Rows of the grid; a cell of a standing person is then about a hundredth of their height.
ROWS = 96
#: How far, in 8-bit levels of the strongest channel, a cell lies at least from its row's background: anywhere, and
#: near the clothes.
FOREGROUND_LEVELS, FAINT_LEVELS = 20.0, 9.0
#: A person who fills more than this share of the picture is a background that nothing stands out from.
MOST_OF_PICTURE = 0.72
#: Shadows of the feet are looked for below this share of the picture.
FLOOR = 0.84
#: How far hair may lie from the hair at the crown, in the same unit.
HAIR_LEVELS = 34.0
#: Colours nearer than this are one, give or take light and shade.
SAME_LEVELS = 25.0
CHIN, NECK, SHOULDERS, WAIST, ANKLES = 0.13, 0.182, 0.18, 0.40, 0.955
#: Where clothes begin, as shares of the standing height: tops at the neck, lower garments from the ribs' end to the
#: hem of what hangs over them.
SHOULDER_ROWS, WAIST_ROWS = (0.165, 0.19), (0.38, 0.54)
#: Nobody's arms reach further from the middle than this, in standing heights; what does is a prop.
REACH = 0.34


@dataclass(frozen=True)
class PersonFrame:
    """Where a person is in a photo: shares of the picture's height, and maps bool ``[ROWS, columns]``."""

    crown: float  # where the top of the head is or would be: negative where the picture cuts the head off
    bottom: float  # of the feet, or of the picture where it cuts them off
    height: float  # standing height, estimated; larger than bottom - crown where the picture cuts the legs off
    silhouette: Mask
    head: Mask  # hair, face and neck as far as they can be told from their place and colour

    @property
    def cut_below(self) -> bool:
        """Whether the picture ends above the feet."""
        return self.bottom >= 1 - 0.5 / ROWS

    def share(self, y: float) -> float:
        """Share of the standing height, from the crown, of a row at ``y`` (share of the picture's height)."""
        return (y - self.crown) / self.height

    def shares(self) -> Values:
        """Share of the standing height of each grid row's middle: float32 ``[ROWS]``."""
        return (((np.arange(ROWS) + 0.5) / ROWS - self.crown) / self.height).astype(np.float32)


def find_person(photo: Image.Image, mask: np.ndarray) -> PersonFrame | None:
    """The person in an upright RGB ``photo``, perhaps shrunk, who wears what ``mask`` (uint8 ``[h, w]``) covers.

    Foreground is what differs from every mixture of the colours at the left and the right border of its row: that
    holds for studio photos, whose walls, floors and shades run across, and fails in a street. The person is the
    piece of foreground that holds the mask. ``None`` where the mask is empty or the piece is no upright person:
    hardly larger than the mask, or as good as the whole picture.
    """
    size = grid_size((mask.shape[1], mask.shape[0]))
    colours = np.stack([np.asarray(band, np.float32) for band in shrunk(photo, size).split()])
    clothes = shrink(mask, size) > 0.4
    if not clothes.any():
        return None
    seen = _seen(colours, clothes)
    if seen.mean() > MOST_OF_PICTURE:
        return None
    person = _frame(seen, clothes)
    return person and replace(person, head=_head(seen & ~clothes, colours, person))


def person_of_parse(parse: np.ndarray) -> PersonFrame | None:
    """The person in a parse map ``[h, w]`` of the 18 ATR labels (bag and scarf apart); ``None`` in an empty one."""
    size = grid_size((parse.shape[1], parse.shape[0]))
    seen, head = (shrink(np.isin(parse, labels), size) > 0.4 for labels in (ON_THE_PERSON, HEAD_LABELS))
    person = _frame(seen, seen & ~head)
    return person and replace(person, head=head)


def assumed_person(garment: Mask, cloth_type: int) -> PersonFrame:
    """A person guessed from the garment's own cells ``[ROWS, columns]``, for photos in which nobody was found.

    Its top is the shoulders or, for lower body, the waist; hips and shoulders are about a quarter of the height.
    """
    seen = garment if garment.any() else np.ones_like(garment)
    rows = np.flatnonzero(seen.any(axis=1))
    first = WAIST if cloth_type == LOWER else SHOULDERS
    breadth = float(np.quantile(seen.sum(axis=1)[rows], 0.7))
    height = max(breadth / 0.25, (rows[-1] + 1 - rows[0]) / (ANKLES - first)) / ROWS
    crown = rows[0] / ROWS - first * height
    return PersonFrame(crown, min(crown + height, 1.0), height, silhouette=seen, head=np.zeros_like(seen))


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of the grid for a picture of ``size`` (width, height)."""
    return max(8, min(3 * ROWS, round(ROWS * size[0] / size[1]))), ROWS


def shrink(mask: np.ndarray, size: tuple[int, int]) -> Values:
    """Share of each grid cell that a mask ``[h, w]`` in {0, 1} covers: float32 ``[rows, columns]``."""
    levels = Image.fromarray((mask > 0).view(np.uint8) * np.uint8(255))
    return np.asarray(shrunk(levels, size), np.float32) / np.float32(255)


def shrunk(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``picture`` averaged down to ``size`` (width, height): whole pixels first, which is five times as fast."""
    return picture.resize(size, Image.Resampling.BOX, reducing_gap=1.0)


def _seen(colours: Values, clothes: Mask) -> Mask:
    """The cells of the person in ``clothes``: bool ``[rows, columns]``; ``colours`` float32 ``[3, rows, columns]``."""
    rows, columns = clothes.shape
    difference, shadow = _foreground(colours)
    first = int(np.argmax(clothes.any(axis=1)))
    middle = float(np.flatnonzero(clothes.any(axis=0))[[0, -1]].mean())
    away = np.abs(np.arange(columns) - middle)
    seen = difference > FOREGROUND_LEVELS
    # Pale clothes before a pale wall: below the shoulders and near the middle there are few props.
    below = slice(first, round(FLOOR * rows))
    seen[below] |= (difference[below] > FAINT_LEVELS) & (away < 0.13 * ROWS)
    seen = (seen & ~shadow | clothes) & (away < REACH * ROWS)
    # A top in the wall's colour may hide what joins the head to a skirt.
    above = seen & (away < 0.05 * ROWS)
    above[first:] = False
    # Gaps of one row are closed: a collar in the wall's colour beheads nobody.
    seen |= ndimage.binary_closing(seen, np.ones((3, 1)))
    seen = ndimage.binary_propagation((clothes | above) & seen, mask=seen)
    # What lies above the clothes but far from the middle of their top is no head.
    if first < ROWS // 3:
        middle = float(np.median(np.nonzero(seen[first : first + ROWS // 16])[1]))
        seen[:first, np.abs(np.arange(columns) - middle) > 0.13 * ROWS] = False
    return seen


def _foreground(colours: Values) -> tuple[Values, Mask]:
    """How far cells are from the line between their row's border colours, and which are only darker floor.

    ``colours`` is float32 ``[3, rows, columns]``; returns float32 and bool ``[rows, columns]``.
    """
    left, right = np.median(colours[:, :, :3], axis=2), np.median(colours[:, :, -3:], axis=2)
    along = right - left
    offset = colours - left[..., None]
    place = (offset * along[..., None]).sum(axis=0) / np.maximum((along**2).sum(axis=0), 1e-3)[:, None]
    wall = left[..., None] + np.clip(place, 0, 1) * along[..., None]
    dimming = (colours + 1) / (wall + 1)
    darkest, lightest = dimming.min(axis=0), dimming.max(axis=0)
    shadow = (lightest - darkest < 0.07) & (darkest > 0.55) & (lightest < 1)
    shadow[: round(FLOOR * len(shadow))] = False
    return np.abs(colours - wall).max(axis=0), shadow


def _frame(seen: Mask, clothes: Mask) -> PersonFrame | None:
    """The frame of who is ``seen``, without a head; ``None`` for less than a quarter of the picture's height."""
    rows = np.flatnonzero(seen.any(axis=1))
    if not len(rows) or rows[-1] + 1 - rows[0] < ROWS // 4:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    crown, height = float(top), float(bottom - top)
    cut_below = bottom >= ROWS - 1
    if top == 0 and seen[0].sum() >= 0.14 * (ROWS if cut_below else bottom):
        # Without a head: a body as broad as this one, shoulders or hips, is four times as high.
        breadth = float(np.quantile(clothes.sum(axis=1)[clothes.any(axis=1)], 0.7))
        height = max(4.2 * breadth, height)
        crown = -0.2 * height if cut_below else bottom - height
    elif cut_below:
        height = _height_by_head(seen, clothes, top)
    return PersonFrame(crown / ROWS, bottom / ROWS, height / ROWS, silhouette=seen, head=np.zeros_like(seen))


def _height_by_head(seen: Mask, clothes: Mask, top: int) -> float:
    """Standing height in rows of a person who is cut off below: their head is about .115 of it wide.

    What the clothes' first row can be decides between such estimates: the shoulders, or waist to long hem.
    """
    visible = float(ROWS - top)
    upper = seen[top : top + ROWS // 4]
    middle = round(float(np.median(np.nonzero(upper[: ROWS // 16])[1])))
    # How many cells of each row belong to the run through the middle.
    widths = sum(np.cumprod(half, axis=1).sum(axis=1) for half in (upper[:, middle:], upper[:, :middle][:, ::-1]))
    height = 1.15 * visible
    for _ in range(3):
        head = widths[round(0.035 * height) : round(0.10 * height) + 1]
        height = 0.5 * height + 0.5 * min(float(np.median(head)) / 0.115, 1.6 * visible)
    first = int(np.argmax(clothes.any(axis=1))) - top
    share = first / height
    candidates = [float(np.clip(share, *rows)) for rows in (SHOULDER_ROWS, WAIST_ROWS)]
    nearest = min(candidates, key=lambda candidate: abs(np.log(max(share, 0.01) / candidate)))
    if first > 0:
        height = 0.25 * height + 0.75 * first / nearest
    return float(np.clip(height, visible, 3.0 * visible))


def _head(bare: Mask, colours: Values, person: PersonFrame) -> Mask:
    """What is above the chin, the neck, and the hair below the chin as far as its colour tells it from skin.

    ``bare`` is the person without the clothes, bool ``[rows, columns]``; ``colours`` float32 ``[3, rows, columns]``.
    """
    height = person.height * ROWS

    def rows(first: float, last: float) -> slice:
        begin = max(0, round(person.crown * ROWS + first * height))
        return slice(begin, max(begin + 1, round(person.crown * ROWS + last * height)))

    chin = round(person.crown * ROWS + CHIN * height)
    head = np.zeros_like(bare)
    head[: max(0, chin)] = bare[: max(0, chin)]
    if chin <= 1 or not head.any():
        return np.zeros_like(bare)
    near = np.abs(np.arange(bare.shape[1]) - np.nonzero(head)[1].mean())
    head &= near < 0.11 * height
    neck = slice(chin - 1, round(person.crown * ROWS + NECK * height))
    head[neck] |= bare[neck] & (near < 0.055 * height)

    def colour(band: slice, begin: float, end: float) -> Values | None:
        cells = head[band] & (begin * height <= near) & (near < end * height)
        return np.median(colours[:, band][:, cells], axis=1) if cells.any() else None

    tuft, face = colour(rows(0.012, 0.04), 0, 1), colour(rows(0.07, 0.11), 0, 0.025)
    beside = colour(rows(0.085, 0.125), 0.04, 1)  # where a hat hides the crown
    if tuft is None or face is None:
        return head
    hair = np.zeros_like(bare)
    for shade in (tuft,) if beside is None else (tuft, beside):
        away = np.abs(colours - shade[:, None, None]).max(axis=0)
        contrast = float(np.abs(shade - face).max())
        if contrast > SAME_LEVELS:
            hair |= (away < min(HAIR_LEVELS, 0.6 * contrast)) & (near < 0.15 * height)
        # Seen from the back there is no skin to compare with: a neck hidden by something broad tells of long hair.
        elif shade is tuft and bare[rows(0.14, 0.165)].sum(axis=1).max(initial=0) > 0.095 * height:
            hair |= (away < SAME_LEVELS) & (near < 0.10 * height)
    hair[rows(0.46, 10.0)] = False
    whole: Mask = ndimage.binary_propagation(head, mask=hair & bare | head)
    return whole
