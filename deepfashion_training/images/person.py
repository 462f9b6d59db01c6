"""Where a person stands in a photo, found without a model: box, frame, silhouette and head on a small grid.

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

    top: float  # of the head, or of the picture where the head is cut off
    bottom: float  # of the feet, or of the picture where it cuts them off
    height: float  # standing height, estimated; larger than bottom - top where the picture cuts the person
    crown: float  # where the top of the head is or would be: negative where the picture cuts the head off
    silhouette: Mask
    head: Mask  # hair, face and neck as far as they can be told from their place and colour

    @property
    def cut_below(self) -> bool:
        """Whether the picture ends above the feet."""
        return self.bottom >= 1 - 0.5 / ROWS

    def share(self, y: float) -> float:
        """Share of the standing height, from the crown, of a row at ``y`` (share of the picture's height)."""
        return (y - self.crown) / self.height

    def y(self, share: float) -> float:
        """The row, as a share of the picture's height, at a share of the standing height."""
        return self.crown + share * self.height


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
    return _person_of(seen, clothes, colours)


def person_of_parse(parse: np.ndarray) -> PersonFrame | None:
    """The person in a parse map ``[h, w]`` of the 18 ATR labels (bag and scarf apart); ``None`` in an empty one."""
    size = grid_size((parse.shape[1], parse.shape[0]))
    seen = shrink(np.isin(parse, ON_THE_PERSON).view(np.uint8), size) > 0.4
    if not seen.any():
        return None
    head = shrink(np.isin(parse, HEAD_LABELS).view(np.uint8), size) > 0.4
    person = _person_of(seen, seen & ~head, None)
    return person and replace(person, head=head)


def assumed_person(garment: Mask, cloth_type: int) -> PersonFrame:
    """A person guessed from the garment's own cells ``[ROWS, columns]``, for photos in which nobody was found.

    Its top is the shoulders or, for lower body, the waist; hips and shoulders are about a quarter of the height.
    """
    seen = garment if garment.any() else np.ones_like(garment)
    rows = np.flatnonzero(seen.any(axis=1))
    first = WAIST if cloth_type == LOWER else SHOULDERS
    breadth = float(np.quantile(seen.sum(axis=1)[rows], 0.7))
    height = max(breadth / 0.25, (rows[-1] + 1 - rows[0]) / (ANKLES - first))
    crown = (rows[0] - first * height) / ROWS
    bottom = min(crown + height / ROWS, 1.0)
    return PersonFrame(max(crown, 0.0), bottom, height / ROWS, crown, silhouette=seen, head=np.zeros_like(seen))


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of the grid for a picture of ``size`` (width, height)."""
    return max(8, min(3 * ROWS, round(ROWS * size[0] / size[1]))), ROWS


def shrink(mask: np.ndarray, size: tuple[int, int]) -> Values:
    """Share of each grid cell that a mask ``[h, w]`` in {0, 1} covers: float32 ``[rows, columns]``."""
    return np.asarray(
        shrunk(Image.fromarray((mask > 0).view(np.uint8) * np.uint8(255)), size), np.float32
    ) / np.float32(255)


def shrunk(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``picture`` averaged down to ``size`` (width, height): whole pixels first, which is five times as fast."""
    factors = max(1, picture.width // size[0]), max(1, picture.height // size[1])
    reduced = picture.reduce(factors) if max(factors) > 1 else picture
    return reduced if reduced.size == size else reduced.resize(size, Image.Resampling.BOX)


def connected(cells: Mask, seeds: Mask) -> Mask:
    """The cells reached from ``seeds`` without leaving ``cells``, through sides."""
    reached: Mask = ndimage.binary_propagation(seeds & cells, mask=cells)
    return reached


def _seen(colours: Values, clothes: Mask) -> Mask:
    """The cells of the person in ``clothes``: bool ``[rows, columns]``; ``colours`` float32 ``[3, rows, columns]``."""
    rows, columns = clothes.shape
    difference, shadow = _foreground(colours)
    first = int(np.argmax(clothes.any(axis=1)))
    middle = float(np.flatnonzero(clothes.any(axis=0))[[0, -1]].mean())
    away = np.abs(np.arange(columns) - middle)
    seen = difference > FOREGROUND_LEVELS
    # Pale clothes before a pale wall: below the shoulders and near the middle there are few props.
    last = round(FLOOR * rows)
    seen[first:last] |= (difference[first:last] > FAINT_LEVELS) & (away < 0.13 * ROWS)
    seen &= ~shadow
    seen |= clothes
    seen &= away < REACH * ROWS
    # A top in the wall's colour may hide what joins the head to a skirt.
    above = seen & (away < 0.05 * ROWS)
    above[first:] = False
    seen = connected(_closed(seen), clothes | above)
    _drop_props(seen, clothes)
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
    distance = np.abs(colours - wall)
    difference = distance.max(axis=0)
    shadow = np.zeros(difference.shape, bool)
    floor = slice(round(FLOOR * len(difference)), None)
    dimming = (colours[:, floor] + 1) / (wall[:, floor] + 1)
    darkest, lightest = dimming.min(axis=0), dimming.max(axis=0)
    shadow[floor] = (lightest - darkest < 0.07) & (darkest > 0.55) & (lightest < 1)
    return difference, shadow


def _closed(cells: Mask) -> Mask:
    """``cells`` with gaps of one row closed, so that a collar in the wall's colour does not behead anybody."""
    return cells | ndimage.binary_closing(cells, np.ones((3, 1)))


def _drop_props(seen: Mask, clothes: Mask) -> None:
    """Clear, in place, what lies above the clothes but far from the middle of their top: no head is there."""
    first = int(np.flatnonzero(clothes.any(axis=1))[0])
    below = seen[first : first + ROWS // 16]
    middle = float(np.median(np.nonzero(below)[1]))
    away = np.abs(np.arange(seen.shape[1]) - middle)
    if first < ROWS // 3:
        seen[:first, away > 0.13 * ROWS] = False


def _person_of(seen: Mask, clothes: Mask, colours: Values | None) -> PersonFrame | None:
    rows = np.flatnonzero(seen.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    if bottom - top < ROWS // 4:
        return None
    crown, height = _stature(seen, clothes, top, bottom)
    head = np.zeros_like(seen) if colours is None else _head(seen, clothes, colours, crown, height)
    return PersonFrame(top / ROWS, bottom / ROWS, height / ROWS, crown / ROWS, silhouette=seen, head=head)


def _stature(seen: Mask, clothes: Mask, top: int, bottom: int) -> tuple[float, float]:
    """Row of the crown and standing height in rows; both estimated where the picture cuts the person."""
    if bottom < ROWS - 1 and top > 0:
        return float(top), float(bottom - top)
    if bottom < ROWS - 1 and seen[0].sum() < 0.14 * bottom:
        return 0.0, float(bottom)  # the head touches the edge
    if bottom >= ROWS - 1 and (top > 0 or seen[0].sum() < 0.14 * ROWS):
        return float(top), _height_by_head(seen, clothes, top)
    # Without a head: a body as broad as this one, shoulders or hips, is four times as high.
    breadth = float(np.quantile(clothes.sum(axis=1)[clothes.any(axis=1)], 0.7))
    height = max(4.2 * breadth, float(bottom - top))
    return (bottom - height, height) if bottom < ROWS - 1 else (-0.2 * height, height)


def _height_by_head(seen: Mask, clothes: Mask, top: int) -> float:
    """Standing height in rows of a person who is cut off below: their head is about .115 of it wide.

    What the clothes' first row can be decides between such estimates: the shoulders, or waist to long hem.
    """
    visible = float(ROWS - top)
    middle = round(float(np.median(np.nonzero(seen[top : top + ROWS // 16])[1])))
    widths = _widths_around(seen[top : top + ROWS // 4], middle)
    height = 1.15 * visible
    for _ in range(3):
        head = widths[round(0.035 * height) : round(0.10 * height) + 1]
        height = 0.5 * height + 0.5 * min(float(np.median(head)) / 0.115, 1.6 * visible)
    first = int(np.argmax(clothes.any(axis=1))) - top
    share = first / height
    candidates = [np.clip(share, *SHOULDER_ROWS), np.clip(share, *WAIST_ROWS)]
    nearest = min(candidates, key=lambda candidate: abs(np.log(max(share, 0.01) / candidate)))
    if first > 0:
        height = 0.25 * height + 0.75 * first / float(nearest)
    return float(np.clip(height, visible, 3.0 * visible))


def _widths_around(cells: Mask, middle: int) -> npt.NDArray[np.int64]:
    """How many cells of each row belong to the run through ``middle``."""
    right = np.cumprod(cells[:, middle:], axis=1).sum(axis=1)
    return right + np.cumprod(cells[:, :middle][:, ::-1], axis=1).sum(axis=1)


def _head(seen: Mask, clothes: Mask, colours: Values, crown: float, height: float) -> Mask:
    """What is above the chin, the neck, and the hair below the chin as far as its colour tells it from skin."""
    chin = round(crown + CHIN * height)
    head = np.zeros_like(seen)
    if chin <= 1:
        return head
    bare = seen & ~clothes
    head[:chin] = bare[:chin]
    if not head.any():
        return head
    middle = float((head.sum(axis=0) * np.arange(seen.shape[1])).sum() / head.sum())
    near = np.abs(np.arange(seen.shape[1]) - middle)
    head &= near < 0.11 * height
    neck = bare & (near < 0.055 * height)
    neck[: max(0, chin - 1)] = False
    neck[round(crown + NECK * height) :] = False
    head |= neck
    hair = _hair(bare, head, colours, crown, height, near)
    return head | connected(hair | head, head)


def _hair(bare: Mask, head: Mask, colours: Values, crown: float, height: float, near: Values) -> Mask:
    """Cells in the colour of the hair at the crown, or beside the face, where a hat hides the crown.

    ``near`` is how far each column is from the middle of the head. Seen from the back there is no skin to compare
    with: then only a neck hidden by something broad says that the hair is long.
    """

    def rows(first: float, last: float) -> slice:
        begin = max(0, round(crown + first * height))
        return slice(begin, max(begin + 1, round(crown + last * height)))

    hair = np.zeros_like(bare)
    tuft, face, side = (
        _median_colour(colours[:, band], head[band] & (low * height <= near) & (near < high * height))
        for band, low, high in ((rows(0.012, 0.04), 0, 1), (rows(0.07, 0.11), 0, 0.025), (rows(0.085, 0.125), 0.04, 1))
    )
    if tuft is None or face is None:
        return hair
    for colour in (tuft, side):
        if colour is None:
            continue
        contrast = float(np.abs(colour - face).max())
        if contrast > SAME_LEVELS:
            hair |= _like(colours, colour, min(HAIR_LEVELS, 0.6 * contrast)) & (near < 0.15 * height)
        elif colour is tuft and bare[rows(0.14, 0.165)].sum(axis=1).max(initial=0) > 0.095 * height:
            hair |= _like(colours, colour, SAME_LEVELS) & (near < 0.10 * height)
    hair[rows(0.46, 10.0)] = False
    return hair & bare


def _median_colour(colours: Values, cells: Mask) -> Values | None:
    """Median colour ``[3]`` of the ``cells`` of ``colours`` ``[3, rows, columns]``; ``None`` without cells."""
    return np.median(colours[:, cells], axis=1) if cells.any() else None


def _like(colours: Values, colour: Values, levels: float) -> Mask:
    """Cells ``[rows, columns]`` nearer than ``levels`` to a colour ``[3]`` in every channel."""
    return np.abs(colours - colour[:, None, None]).max(axis=0) < levels
