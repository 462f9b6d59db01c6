"""Whether a picture can be the mask of a photo, and what it looks like where it cannot.

A photo, a photo with a hole, parse colours or an inverted mask decode to a mask like anything else. What is drawn or
learned with them is wrong, and no message says so. A mask has two levels, one hue and soft edges at most, and its white
is not the background.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from deepfashion_training.images.masks import is_label_map, mask_values, scale_of
from deepfashion_training.images.pictures import over

#: Longer side of the pictures that are judged: a mask's form survives it, JPEG noise does not.
_SIDE = 96
#: What a mask is, for people who have to make one.
WANTED = "paint what is to be repainted white and everything else black"

#: Largest distance of a colour, in [0, 1], from black, from the mask's own hue and from its two levels.
_DARK, _HUE, _LEVEL = 0.12, 0.16, 0.22
#: Largest share of the painted pixels in other hues, and of all pixels at other levels: edges of JPEGs have some.
_OTHER_HUES, _OTHER_LEVELS = 0.04, 0.025
#: Largest share of the pixels that lie on the line between painted and not: noise has little else.
_MOST_LINES = 0.4
#: Difference from the colour of what is painted, in [0, 1], and the share of its inside that may have more: folds and
#: seams of a garment are fainter than a second level.
_SHADE, _OTHER_SHADES = 0.03, 0.02
#: Edges that are tried, as standard deviations of a Gaussian in pixels of ``_SIDE``; softer masks are known as smooth.
_EDGES = (0.0, 0.6, 1.2, 2.0, 3.0, 4.5, 7.0)
#: Fewest pixels that show whether there are folds and seams.
_ENOUGH = 60
#: A channel may lie so far from another colour's and still be the same.
_SAME = 24
#: Smallest share of the photo that a mask may cover: 28x28 pixels of 1024x768.
_SMALLEST = 0.001
#: Largest second difference of levels in [0, 1] between neighbours, in all but 1 of 200 places of a smooth picture.
_BEND = 0.06

Values = npt.NDArray[np.float32]


class MaskFault(NamedTuple):
    """What is wrong with a mask: ``other`` is another kind of picture; and in words what it looks like."""

    kind: Literal["other", "inverted", "everything", "speck"]
    looks: str

    def __str__(self) -> str:
        return f"it {self.looks}: {WANTED}"


def mask_fault(photo: Image.Image, mask: Image.Image, decoded: np.ndarray) -> MaskFault | None:
    """Why ``mask`` cannot be the mask of ``photo``; None where it can.

    ``photo`` is upright RGB, ``mask`` as it was opened (any mode, of the photo's aspect, turned as the photo or not),
    ``decoded`` what ``masks.align_mask`` made of it, uint8 ``[h, w]`` in {0, 1} of the photo's size. An empty mask is
    no fault here: callers check for it.

    Accepted are masks with soft edges, of JPEG, of one hue on black, and maps of labels; those that touch the border;
    and close-ups, whose garment fills the frame. A garment of one even colour on black is taken for a mask.
    """
    if not decoded.any():
        return None
    looks = _other_picture(photo, mask)
    return MaskFault("other", looks) if looks else area_fault(photo, decoded)


def _other_picture(photo: Image.Image, mask: Image.Image) -> str | None:
    """What ``mask`` looks like where its levels and hues are those of another kind of picture."""
    values = mask_values(mask)
    largest = float(values.max(initial=0))
    is_labels = is_label_map(values, largest)
    # A human parser's map of a whole person: hair is 2, the face 11 or 13 in the usual schemes.
    if is_labels and min((values == 2).mean(), np.isin(values, (11, 13)).mean()) > 0.0005:
        return "looks like a human parser's map of the whole person"
    visible = _visible(mask)
    # Nearly all of a mask that was never compressed.
    two_levels = bool(((values == values.min()) | (values == largest)).mean() > 0.99)
    if not two_levels and _shows(photo, visible):
        return "looks like the photo itself, whole, darkened or with a hole"
    if is_labels and largest > 1:
        return None
    if _other_hues(visible[visible.max(axis=2) > _DARK]):
        return "has several colours, like a photo, an overlay or a parser's picture"
    return "has many shades, like a photo or a garment" if _other_levels(visible, two_levels) else None


def area_fault(photo: Image.Image, decoded: np.ndarray) -> MaskFault | None:
    """A fault of what is repainted, arguments as of ``mask_fault``: too little, the background, or everything.

    Where most of the border is painted, white means what to keep, unless the garment fills the frame.
    """
    if decoded.mean() < _SMALLEST:
        return MaskFault("speck", f"covers {np.count_nonzero(decoded)} of {decoded.size} pixels, less than any garment")
    white = _shrunk(Image.fromarray(decoded * np.uint8(255)))[..., 0] > 0.5
    kept = ~white
    corners = white[[0, 0, -1, -1], [0, -1, 0, -1]]
    around = _ring(white).mean() >= 0.7 and corners.sum() >= 3
    # Of people who are cut at the hips or knees, the garment reaches the border at the bottom.
    above = white[0].mean() > 0.95 and bool(corners[:2].all()) and _middle(kept).mean() > 0.8
    if not around and not above:
        return None
    if _middle(kept).mean() > 0.25:
        return MaskFault("inverted", "is white all around, so it seems to be inverted")
    if _fills_the_frame(photo, white):
        return None
    if kept.mean() < 0.004:
        return MaskFault("everything", "covers the whole photo, background and all")
    return MaskFault("inverted", "is white where the background is, so it seems to be inverted")


def _fills_the_frame(photo: Image.Image, white: npt.NDArray[np.bool_]) -> bool:
    """Whether a photo can be a close-up of the garment that is ``white`` [h, w]: by its colours.

    What is in its middle reaches the border then. Where the border is even, it is a garment or the wall behind a
    person, who would show more than what is kept. What is kept and touches no border needs better evidence: it is more
    likely the garment, and the mask is inverted.
    """
    small = np.asarray(photo.resize(white.shape[::-1], Image.Resampling.BOX), np.int16)
    kept, sides = ~white, np.concatenate([small[0], small[:, 0], small[:, -1]])
    floats = kept.mean() > 0.004 and not _ring(kept).any()
    even = np.abs(small - np.median(sides, axis=0)).max(axis=2) <= _SAME
    if _ring(even).mean() > 0.7:
        others = (white & ~even).mean()
        if _middle(even).mean() < 0.5 or (floats and others > 0.2 * kept.mean()):
            return False
    middle, ring = _middle(small).reshape(-1, 3)[::3], _ring(small)[::2]
    near = np.abs(middle[:, None] - ring[None]).max(axis=2) <= _SAME
    return bool((near.mean(axis=1) > 0.05).mean() > (0.9 if floats else 0.2))


def _shows(photo: Image.Image, visible: Values) -> bool:
    """Whether a picture [h, w, 3 or 1] is the photo itself, however dark: by the correlation of their greys."""
    luma = visible @ np.array([0.299, 0.587, 0.114], np.float32) if visible.shape[2] == 3 else visible[..., 0]
    small = photo.resize(luma.shape[::-1], Image.Resampling.BOX).convert("L")
    with np.errstate(divide="ignore", invalid="ignore"):  # of one even colour nothing is known
        return bool(np.corrcoef(np.asarray(small).ravel(), luma.ravel())[0, 1] > 0.98)


def _visible(mask: Image.Image) -> Values:
    """Colours of a mask over black, float32 [h, w, 3 or 1] in [0, 1], small."""
    if mask.mode in ("1", "L", "F") or mask.mode.startswith("I"):
        levels = np.asarray(mask, np.float32)
        shares = np.clip(levels / scale_of(float(levels.max(initial=0))), 0, 1)
        return _shrunk(Image.fromarray((shares * 255).round().astype(np.uint8)))
    return _shrunk(over((0, 0, 0), mask) if mask.has_transparency_data else mask.convert("RGB"))


def _shrunk(picture: Image.Image) -> Values:
    """``picture`` (L or RGB) with ``_SIDE`` pixels along its longer side or fewer: float32 [h, w, 3 or 1] in [0, 1]."""
    factor = max(1.0, max(picture.size) / _SIDE)
    size = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    small = np.asarray(picture.resize(size, Image.Resampling.BOX), np.float32) / np.float32(255)
    return np.atleast_3d(small)


def _other_hues(painted: Values) -> bool:
    """Whether colours [n, 3 or 1] have more than one hue; how bright they are does not matter."""
    if painted.shape[1] == 1 or not len(painted):
        return False
    lengths = np.linalg.norm(painted, axis=1, keepdims=True)
    hue = np.median(painted / lengths, axis=0)
    hue /= np.linalg.norm(hue)
    away = np.linalg.norm(painted - (painted @ hue)[:, None] * hue, axis=1)
    return bool((away > _HUE).mean() > _OTHER_HUES)


def _other_levels(visible: Values, two_levels: bool) -> bool:
    """Whether colours [h, w, 3 or 1] have more levels than a low and a high one with soft edges between them.

    With ``two_levels`` it is known that there were no others before it was shrunk: then only noise is left to be found.
    """
    values = visible.max(axis=2)
    high = values > 0.5
    form = Image.fromarray(high * np.uint8(255))
    between = np.asarray(form.filter(ImageFilter.MaxFilter(3))) != np.asarray(form.filter(ImageFilter.MinFilter(3)))
    if between.mean() > _MOST_LINES:
        return True
    if two_levels:
        return False
    if not high.any():  # a fine line loses its level when it is shrunk
        return values.mean() > 0.02 and not _is_smooth(values)
    # Of few pixels most lie on the line between the two levels.
    low_level, high_level = np.median(values[~high]) if high.mean() < 0.95 else 0.0, np.median(values[high])
    levels = (values - low_level) / (high_level - low_level)
    if _is_smooth(levels):
        return False
    # The threshold of a soft mask is its form; blurred as much as its edge is soft, the form is the mask again.
    blurred = [np.asarray(form.filter(ImageFilter.GaussianBlur(edge)), np.float32) / 255 for edge in _EDGES]
    apart = [float(np.abs(levels - soft).mean()) for soft in blurred]
    edge = int(np.argmin(apart))
    # Pixels on the line between the two are a bit of both.
    if ((np.abs(levels - blurred[edge]) > _LEVEL) & ~between).mean() > _OTHER_LEVELS:
        return True
    outside = (blurred[edge] < 0.02) & (np.asarray(form.filter(ImageFilter.MaxFilter(5))) == 0)
    if outside.any() and (np.abs(levels[outside]) > 0.1).mean() > 0.05:
        return True
    inside = visible[np.asarray(form.filter(ImageFilter.MinFilter(5))) > 0]
    if edge > 1 or len(inside) < _ENOUGH:
        return False
    # Folds and seams: a garment on black.
    return bool((np.abs(inside - np.median(inside, axis=0)).max(axis=1) > _SHADE).mean() > _OTHER_SHADES)


def _is_smooth(levels: Values) -> bool:
    """Whether levels [h, w] in [0, 1] have no edge at all: the soft edge of a mask may be as wide as the mask."""
    bends = [np.abs(np.diff(levels, 2, axis=axis)).ravel() for axis in (0, 1)]
    return bool(np.quantile(np.concatenate(bends), 0.995) < _BEND and np.median(_ring(levels)) < 0.25)


def _middle(values: np.ndarray) -> np.ndarray:
    """The middle ninth of [h, w, ...]."""
    height, width = values.shape[:2]
    return values[height // 3 : -(-2 * height // 3), width // 3 : -(-2 * width // 3)]


def _ring(values: np.ndarray) -> np.ndarray:
    """The outermost pixels of [h, w]."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
