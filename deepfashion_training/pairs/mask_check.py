"""Whether a picture can be the mask of a photo, and what it looks like where it cannot.

A photo, a photo with a hole, parse colours or an inverted mask decode to a mask like anything else, and what is drawn
or learned with them is wrong without a word. A mask has two levels, one hue and soft edges at the most, and white does
not mean the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from deepfashion_training.pairs.masks import is_label_map

#: Longer side of the pictures that are judged: a mask's form survives it, JPEG noise does not.
_SIDE = 96
#: What a mask is, for whoever has to make one.
WANTED = "paint what is to be repainted white and everything else black"

#: Largest distance of a colour, in [0, 1], from black, from the mask's own hue and from its two levels.
_DARK, _HUE, _LEVEL = 0.12, 0.16, 0.22
#: Largest share of the painted pixels in other hues, and of all pixels at other levels: edges of JPEGs have some.
_OTHER_HUES, _OTHER_LEVELS = 0.04, 0.025
#: Largest share of the pixels that lie on the line between painted and not: noise has little else.
_MOST_LINES = 0.4
#: The same of what is painted, inside of its edges: folds and seams of a garment are fainter than a second level.
_SHADE, _OTHER_SHADES = 0.06, 0.1
#: Edges that are tried, as standard deviations of a Gaussian in pixels of ``_SIDE``: sharp to a third of the picture.
_EDGES = (0.0, 0.6, 1.2, 2.0, 3.0, 4.5, 7.0)
#: A channel may lie so far from the photo's and still show it.
_SAME = 24
#: Smallest share of the photo that anybody means: 28x28 pixels of 1024x768.
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
    no fault here: whoever wants a garment tells that by itself.

    Accepted are masks with soft edges, of JPEG, of one hue on black, and maps of labels; those that touch the border;
    and close-ups, whose garment fills the frame. Not told apart from masks are drawings that look like one, such as a
    red garment of one even colour on black.
    """
    if not decoded.any():
        return None
    return _content_fault(photo, mask) or area_fault(photo, decoded)


def _content_fault(photo: Image.Image, mask: Image.Image) -> MaskFault | None:
    """A fault of the mask's own levels and hues: it is another kind of picture."""
    visible = _visible(mask)
    if visible is None:
        return None
    painted = visible.max(axis=2) > _DARK
    alike = _alike(photo, visible)
    several_hues = _other_hues(visible[painted])
    hole = mask.has_transparency_data and "is the photo with a transparent hole"
    if alike.mean() > 0.97:
        return MaskFault("photo", hole or "is the photo itself")
    if not several_hues and not _other_levels(visible):
        return None
    if alike[painted].mean() > 0.3:
        return MaskFault("photo", hole or "is the photo with an area painted over (an agnostic photo, an overlay)")
    if several_hues:
        return MaskFault("colours", "has several colours, as a garment, a photo or the colours of a parser's map have")
    return MaskFault("shades", "has many shades, as a photo or a picture of a garment has")


def area_fault(photo: Image.Image, decoded: np.ndarray) -> MaskFault | None:
    """A fault of what is repainted: too little to mean anything, the background, or everything.

    ``photo`` and ``decoded`` as in ``mask_fault``. The background shows at the photo's border: where most of that is
    painted, white means what to keep, unless the garment fills the frame.
    """
    if decoded.mean() < _SMALLEST:
        return MaskFault("speck", f"covers {decoded.mean():.3%} of the photo, less than any garment")
    white = _shrunk(Image.fromarray(decoded * np.uint8(255)), Image.Resampling.BOX)[..., 0] > 0.5
    ring = _ring(white)
    corners = white[[0, 0, -1, -1], [0, -1, 0, -1]]
    if ring.mean() < 0.7 or corners.sum() < 3:
        return None
    kept = ~white
    small = np.asarray(photo.resize(white.shape[::-1], Image.Resampling.BOX), np.int16)
    if kept.mean() < 0.02:
        wall = _in_colours(small, [small[0], small[:, 0], small[:, -1]], together=True)
        if _ring(wall).mean() > 0.7 and _middle(wall) < 0.5:
            return MaskFault("everything", "covers the whole photo, background and all")
        return None
    if kept.mean() > 0.05 and not _ring(kept).any():  # like a garment, and unlike what a close-up leaves
        return MaskFault("inverted", "is white all around, so it seems to be inverted")
    background = _in_colours(small, [small[0], small[-1], small[:, 0], small[:, -1]])
    shown = _ring(background)
    if shown.mean() > 0.7 and _middle(background) <= 0.5:
        # A corner of something else is left out of close-ups, which may show an even garment all around.
        close_up = kept.mean() < 0.08 and _ring(kept).any()
        if (ring & shown).sum() > 0.85 * shown.sum() and not close_up:
            return MaskFault("inverted", "is white where the background is, so it seems to be inverted")
    elif (_middle(kept) > 0.25 and kept.mean() > 0.05) or (shown.mean() <= 0.7 and kept.mean() > 0.2):
        return MaskFault("inverted", "is white up to the corners, so it seems to be inverted")
    return None


def _visible(mask: Image.Image) -> Values | None:
    """Colours of a mask over black, float32 [h, w, 3] in [0, 1], small; None for a map of labels."""
    if mask.mode in ("1", "L", "F") or mask.mode.startswith("I"):
        levels = np.asarray(mask, np.float32)
        largest = float(levels.max(initial=0))
        if largest > 1 and is_label_map(levels, largest):
            return None
        scale = 1 if largest <= 1 else 255 if largest <= 255 else 65535
        grey = Image.fromarray((np.clip(levels / scale, 0, 1) * 255).round().astype(np.uint8))
        return _shrunk(grey, Image.Resampling.BOX)
    if not mask.has_transparency_data:
        return _shrunk(mask.convert("RGB"), Image.Resampling.BOX)
    rgba = mask.convert("RGBA")
    canvas = Image.new("RGB", rgba.size)
    canvas.paste(rgba, mask=rgba)
    return _shrunk(canvas, Image.Resampling.BOX)


def _shrunk(picture: Image.Image, how: Image.Resampling) -> Values:
    """``picture`` (L or RGB) with ``_SIDE`` pixels along its longer side or fewer: float32 [h, w, 3 or 1] in [0, 1]."""
    factor = max(1.0, max(picture.size) / _SIDE)
    size = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    small = np.asarray(picture if size == picture.size else picture.resize(size, how), np.float32) / np.float32(255)
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


def _other_levels(visible: Values) -> bool:
    """Whether colours [h, w, 3 or 1] have more levels than a low and a high one with soft edges between them."""
    values = visible.max(axis=2)
    high = values > 0.5
    if not high.any():
        return not _is_smooth(values)
    # Of few pixels most lie on the line between the two levels.
    low_level, high_level = np.median(values[~high]) if high.mean() < 0.95 else 0.0, np.median(values[high])
    if low_level > 0.25:
        return True
    levels = (values - low_level) / (high_level - low_level)
    if _is_smooth(levels):
        return False
    # The threshold of a soft mask is its form; blurred as much as its edge is soft, the form is the mask again.
    form = Image.fromarray(high * np.uint8(255))
    blurred = [np.asarray(form.filter(ImageFilter.GaussianBlur(edge)), np.float32) / 255 for edge in _EDGES]
    nearest = min(blurred, key=lambda soft: float(np.abs(levels - soft).mean()))
    # Pixels on the line between the two are a bit of both.
    between = np.asarray(form.filter(ImageFilter.MaxFilter(3))) != np.asarray(form.filter(ImageFilter.MinFilter(3)))
    if between.mean() > _MOST_LINES or ((np.abs(levels - nearest) > _LEVEL) & ~between).mean() > _OTHER_LEVELS:
        return True
    sharp = nearest is blurred[0] or nearest is blurred[1]
    return sharp and _has_shades(visible[np.asarray(form.filter(ImageFilter.MinFilter(5))) > 0])


def _has_shades(inside: Values) -> bool:
    """Whether colours [n, 3 or 1] well inside of what is painted have folds and seams: a garment on black."""
    if not len(inside):
        return False
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
    """Where a picture [h, w, 3 or 1] in [0, 1] shows what the photo shows, bool [h, w]."""
    small = photo.resize((visible.shape[1], visible.shape[0]), Image.Resampling.BOX)
    shown = np.asarray(small if visible.shape[2] == 3 else small.convert("L"), np.float32)
    return np.abs(shown.reshape(visible.shape) - visible * 255).max(axis=2) <= _SAME


def _in_colours(
    photo: npt.NDArray[np.int16], sides: Sequence[npt.NDArray[np.int16]], *, together: bool = False
) -> npt.NDArray[np.bool_]:
    """Pixels, bool [h, w], of an RGB photo [h, w, 3] in the median colour of one of ``sides``, or of all together."""
    groups = [np.concatenate(sides)] if together else sides
    colours = [np.median(group, axis=0) for group in groups]
    return np.logical_or.reduce([np.abs(photo - colour).max(axis=2) <= _SAME for colour in colours])


def _middle(cells: npt.NDArray[np.bool_]) -> float:
    """Share of the middle ninth of [h, w] that is true."""
    height, width = cells.shape
    return float(cells[height // 3 : -(-2 * height // 3), width // 3 : -(-2 * width // 3)].mean())


def _ring(values: np.ndarray) -> np.ndarray:
    """The outermost pixels of [h, w]."""
    return np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
