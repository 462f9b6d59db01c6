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

from deepfashion_training.images.masks import is_label_map, mask_values
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
_SHADE, _OTHER_SHADES = 0.06, 0.1
#: Edges that are tried, as standard deviations of a Gaussian in pixels of ``_SIDE``; softer masks are known as smooth.
_EDGES = (0.0, 0.6, 1.2, 2.0, 3.0, 4.5, 7.0)
#: Fewest pixels that show whether there are folds and seams.
_ENOUGH = 60
#: Modes of one channel.
_GREY = ("1", "L", "F")
#: A channel may lie so far from the photo's and still show it.
_SAME = 24
#: Smallest share of the photo that a mask may cover: 28x28 pixels of 1024x768.
_SMALLEST = 0.001
#: Largest second difference of levels in [0, 1] between neighbours, in all but 1 of 200 places of a smooth picture.
_BEND = 0.06

Kind = Literal["photo", "colours", "shades", "inverted", "everything", "speck"]
Values = npt.NDArray[np.float32]


class MaskFault(NamedTuple):
    """What is wrong with a mask: its kind, and in words what it looks like."""

    kind: Kind
    looks: str

    def __str__(self) -> str:
        return f"it {self.looks}: {WANTED}"


def mask_fault(photo: Image.Image, mask: Image.Image, decoded: np.ndarray) -> MaskFault | None:
    """Why ``mask`` cannot be the mask of ``photo``; None where it can.

    ``photo`` is upright RGB, ``mask`` as it was opened (any mode, of the photo's aspect, turned as the photo or not),
    ``decoded`` what ``masks.align_mask`` made of it, uint8 ``[h, w]`` in {0, 1} of the photo's size. An empty mask is
    no fault here: callers check for it.

    Accepted are masks with soft edges, of JPEG, of one hue on black, and maps of labels; those that touch the border;
    and close-ups, whose garment fills the frame. Pictures that look like a mask are taken for one, such as a red
    garment of one even colour on black, or all white over a white garment before a white wall.
    """
    if not decoded.any():
        return None
    return _content_fault(photo, mask) or area_fault(photo, decoded)


def _content_fault(photo: Image.Image, mask: Image.Image) -> MaskFault | None:
    """A fault of the mask's own levels and hues: it is another kind of picture."""
    values = mask_values(mask)
    largest = float(values.max(initial=0))
    is_labels = is_label_map(values, largest)
    # Hair is 2, the face 11 or 13 in the usual schemes.
    if is_labels and min((values == 2).mean(), np.isin(values, (11, 13)).mean()) > 0.0005:
        return MaskFault("colours", "is a human parser's map of a whole person, with hair and face")
    visible = _visible(mask)
    painted = visible.max(axis=2) > _DARK
    # Nearly all of a mask that was never compressed.
    two_levels = bool(((values == values.min()) | (values == largest)).mean() > 0.99)
    small = photo.resize((visible.shape[1], visible.shape[0]), Image.Resampling.BOX)
    hole = mask.has_transparency_data and "is the photo with a transparent hole"
    if not two_levels and _correlation(small, visible) > 0.98:
        return MaskFault("photo", hole or "is the photo itself")
    if is_labels and largest > 1:
        return None
    several_hues = _other_hues(visible[painted])
    if not several_hues and not _other_levels(visible, two_levels):
        return None
    if painted.any() and _alike(small, visible)[painted].mean() > 0.3:
        return MaskFault("photo", hole or "is the photo with an area painted over (an agnostic photo, an overlay)")
    if several_hues:
        return MaskFault("colours", "has several colours, as a garment, a photo or the colours of a parser's map have")
    return MaskFault("shades", "has many shades, as a photo or a picture of a garment has")


def area_fault(photo: Image.Image, decoded: np.ndarray) -> MaskFault | None:
    """A fault of what is repainted: too little to mean anything, the background, or everything.

    ``photo`` and ``decoded`` as in ``mask_fault``. Where most of the border is painted, white means what to keep,
    unless what the photo shows in its middle reaches the border: then the garment fills the frame.
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


def _correlation(photo: Image.Image, visible: Values) -> float:
    """How a picture [h, w, 3 or 1] correlates with a photo of its size, however dark it is: 1 for the photo itself."""
    luma = visible @ np.array([0.299, 0.587, 0.114], np.float32) if visible.shape[2] == 3 else visible[..., 0]
    shown, seen = (grey - grey.mean() for grey in (np.asarray(photo.convert("L"), np.float32) / 255, luma))
    spread = float(np.sqrt((shown**2).mean() * (seen**2).mean()))
    return float((shown * seen).mean()) / spread if spread > 1e-5 else 0.0


def _visible(mask: Image.Image) -> Values:
    """Colours of a mask over black, float32 [h, w, 3 or 1] in [0, 1], small."""
    if mask.mode in _GREY or mask.mode.startswith("I"):
        levels = np.asarray(mask, np.float32)
        largest = float(levels.max(initial=0))
        scale = 1 if largest <= 1 else 255 if largest <= 255 else 65535
        return _shrunk(Image.fromarray((np.clip(levels / scale, 0, 1) * 255).round().astype(np.uint8)))
    return _shrunk(over((0, 0, 0), mask) if mask.has_transparency_data else mask.convert("RGB"))


def _shrunk(picture: Image.Image) -> Values:
    """``picture`` (L or RGB) with ``_SIDE`` pixels along its longer side or fewer: float32 [h, w, 3 or 1] in [0, 1]."""
    factor = max(1.0, max(picture.size) / _SIDE)
    size = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BOX)
    small = np.asarray(picture, np.float32) / np.float32(255)
    return small[..., None] if small.ndim == 2 else small


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
        shares = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
        return bool(((shares > 0.05) & (shares < 0.95) & ~between).mean() > 0.1)  # noise that was shrunk to grey
    if not high.any():  # a fine line loses its level when it is shrunk
        return values.mean() > 0.02 and not _is_smooth(values)
    # Of few pixels most lie on the line between the two levels.
    low_level, high_level = np.median(values[~high]) if high.mean() < 0.95 else 0.0, np.median(values[high])
    if low_level > 0.25:
        return True
    levels = (values - low_level) / (high_level - low_level)
    if _is_smooth(levels):
        return False
    # The threshold of a soft mask is its form; blurred as much as its edge is soft, the form is the mask again.
    blurred = [np.asarray(form.filter(ImageFilter.GaussianBlur(edge)), np.float32) / 255 for edge in _EDGES]
    nearest = min(blurred, key=lambda soft: float(np.abs(levels - soft).mean()))
    # Pixels on the line between the two are a bit of both.
    if ((np.abs(levels - nearest) > _LEVEL) & ~between).mean() > _OTHER_LEVELS:
        return True
    outside = (nearest < 0.02) & (np.asarray(form.filter(ImageFilter.MaxFilter(5))) == 0)
    if outside.any() and (np.abs(levels[outside]) > 0.1).mean() > 0.05:
        return True
    sharp = nearest is blurred[0] or nearest is blurred[1]
    inside = visible[np.asarray(form.filter(ImageFilter.MinFilter(5))) > 0]
    return sharp and len(inside) >= _ENOUGH and _has_shades(inside)


def _has_shades(inside: Values) -> bool:
    """Whether colours [n, 3 or 1] well inside of what is painted have folds and seams: a garment on black."""
    colour = np.median(inside, axis=0)
    shares = colour / colour.max()
    # White, red, yellow...: what people paint masks in.
    pure = colour.max() > 0.9 and ((shares < 0.15) | (shares > 0.85)).all()
    shade, many = (_SHADE, _OTHER_SHADES) if pure else (_SHADE / 2, _OTHER_SHADES / 5)
    return bool((np.abs(inside - colour).max(axis=1) > shade).mean() > many)


def _is_smooth(levels: Values) -> bool:
    """Whether levels [h, w] in [0, 1] have no edge at all: the soft edge of a mask may be as wide as the mask."""
    bends = [np.abs(np.diff(levels, 2, axis=axis)).ravel() for axis in (0, 1)]
    return bool(np.quantile(np.concatenate(bends), 0.995) < _BEND and np.median(_ring(levels)) < 0.25)


def _alike(photo: Image.Image, visible: Values) -> npt.NDArray[np.bool_]:
    """Where a picture [h, w, 3 or 1] in [0, 1] shows what a photo of its size shows, bool [h, w]."""
    shown = np.asarray(photo if visible.shape[2] == 3 else photo.convert("L"), np.float32)
    return np.abs(shown.reshape(visible.shape) - visible * 255).max(axis=2) <= _SAME


def _middle(values: np.ndarray) -> np.ndarray:
    """The middle ninth of [h, w, ...]."""
    height, width = values.shape[:2]
    return values[height // 3 : -(-2 * height // 3), width // 3 : -(-2 * width // 3)]


def _ring(values: np.ndarray) -> np.ndarray:
    """The outermost pixels of [h, w]."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
