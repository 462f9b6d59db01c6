"""Draws a person in an outfit: photo, parse map, agnostic masks, and each garment laid out flat.

Any person can be combined with any outfit and any pose. The agnostic masks come from the body alone, so they are the
same whatever is worn::

    rng = np.random.default_rng(0)
    person = random_person(rng, "id_00000001")
    outfit, _ = random_outfit(rng, person.gender)
    drawing = draw_person(person, outfit, random_pose(rng, "front"), size=(384, 288))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from deepfashion_training.embedded import people
from deepfashion_training.embedded.body import FLAT_POSE, WAIST_Y, Body, Person, Pose
from deepfashion_training.embedded.garments import Garment, Outfit
from deepfashion_training.embedded.painting import (
    Canvas,
    Detail,
    LabelMap,
    Piece,
    Points,
    Window,
    disc,
    hull,
    hull_of_discs,
    points,
    shaded,
    supersampling,
)
from deepfashion_training.embedded.patterns import PALETTE
from deepfashion_training.embedded.studio import background, floor_shadow
from deepfashion_training.embedded.tailoring import Tailor
from deepfashion_training.garment_types import FULL, LOWER, UPPER

Mask = npt.NDArray[np.bool_]

SCARF = 17
#: Labels that a garment of each type has in the parse map.
GARMENT_LABELS: dict[int, tuple[int, ...]] = {UPPER: (4,), LOWER: (5, 6), FULL: (7,)}
#: Labels of everything that counts as clothes.
CLOTHES_LABELS: tuple[int, ...] = (4, 5, 6, 7, 8, 17)

_KEEP, _ARM = 1, 2


@dataclass(frozen=True)
class Drawing:
    """One picture of a person, and what is known about it. All arrays have the photo's height and width."""

    photo: Image.Image  # RGB
    parse: LabelMap  # uint8 [H, W], the 18 ATR labels
    keep: Mask  # face, hair, hands, shoes, bag as they show on the undressed body
    agnostic: dict[int, Mask]  # area to repaint for cloth types 1, 2 and 3; never touches ``keep``

    def garment_mask(self, cloth_type: int) -> Mask:
        """Where the garment of that type shows, bool [H, W]."""
        return np.isin(self.parse, GARMENT_LABELS[cloth_type])

    def clothes_mask(self) -> Mask:
        """Where any clothes show, bool [H, W]."""
        return np.isin(self.parse, CLOTHES_LABELS)


def draw_person(
    person: Person,
    outfit: Outfit,
    pose: Pose,
    size: tuple[int, int] = (384, 288),
    background_seed: int = 0,
    bare_wall: bool = False,
) -> Drawing:
    """Draw one person in one outfit, before a ``bare_wall`` or wherever ``background_seed`` puts them.

    ``size`` is (height, width) in pixels, at least 64 each (``ValueError`` otherwise). The same arguments give the
    same pixels.
    """
    if min(size) < 64:
        raise ValueError(f"size {size[0]}x{size[1]} is too small: people need at least 64x64")
    body = Body(person.gender, person.girth, pose)
    scale = min(size[0] * pose.size, size[1] / (0.46 if pose.half else 0.62))
    top = 0.045 * size[0] if pose.from_top else 0.965 * size[0] - scale * 0.995
    if pose.half is None:
        top = max(0.0, top)
    origin = (size[1] / 2 + pose.shift * min(size), top)
    photo = background(np.random.default_rng([background_seed, 77]), size, soles=top + scale, bare=bare_wall)
    floor_shadow(photo, body, scale, origin)
    bare = _Bare(person, body)
    pieces = _dressed(bare, outfit, body, scale * supersampling(size[0]))
    window = Window.around(pieces, size, scale, origin)
    canvas = Canvas(photo, window, pieces)
    undressed = window.spread(window.silhouettes(bare.shapes()), size)
    parse = window.spread(_parse(canvas, body), size)
    return Drawing(photo, parse, undressed == _KEEP, _agnostic(body, undressed, scale, origin))


def draw_flat(
    garment: Garment, gender: str, size: tuple[int, int] = (384, 288), inner: str = "white"
) -> tuple[Image.Image, Mask]:
    """The garment alone, laid out on white: RGB picture and bool mask [H, W] of where it lies.

    Cloth and cut are those that ``draw_person`` puts on an average body of that gender. ``inner`` is the colour of
    the tee that shows in an open top.
    """
    tailor = Tailor(garment, Body(gender, 1.0, FLAT_POSE), 1.2 * size[0] * supersampling(size[0]), inner)
    pieces = tailor.below() if garment.cloth_type != UPPER else []
    if garment.cloth_type != LOWER:
        sleeves = [piece for side in (-1, 1) for piece in tailor.sleeve(side)]
        pieces = [*pieces, tailor.lining(), *sleeves, *tailor.above()]
    corners = np.concatenate([shape for piece in pieces for shape in piece.shapes])
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    # As large as fits, but shorts stay smaller than a dress.
    scale = min(0.86 * size[0] / (bottom - top), 0.88 * size[1] / (right - left), 1.45 * size[0])
    origin = (size[1] / 2 - (left + right) / 2 * scale, size[0] / 2 - (top + bottom) / 2 * scale)
    picture = Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    window = Window.around(pieces, size, scale, origin)
    canvas = Canvas(picture, window, pieces)
    return picture, window.spread(canvas.figure(), size) > 0


class _Bare:
    """The pieces of an undressed person in painter's order, shared by the photo and the masks."""

    def __init__(self, person: Person, body: Body) -> None:
        self.order = body.far_and_near()
        self.behind = [side for side in self.order if body.arm_behind(side)]
        self.before = [side for side in self.order if side not in self.behind]
        head = people.Head(person, body)
        self.hair_behind = [] if head.from_behind else head.fall()
        self.head = head.pieces()
        self.chest, self.neck = people.torso(person, body)
        self.arms = {side: people.arm(person, body, side) for side in self.order}
        # Seen from the side, the near shoulder lies over the torso; otherwise the torso's cloth covers its top.
        self.over = abs(body.sin) < 0.6
        self.arms_over = {side: people.arm(person, body, side, self.over) for side in self.before}
        self.hands = {side: people.hand(person, body, side) for side in self.order}
        self.legs = [people.leg(person, body, side) for side in self.order]
        self.shoes = [people.shoe(person, body, side) for side in self.order]
        self.bag = people.bag(person, body)

    def shapes(self) -> list[tuple[Points, int]]:
        """All shapes back to front, each with ``_KEEP`` where it must stay, ``_ARM`` for an arm, else 0.

        Clothes can only hide more of this, so nothing that must stay can show outside.
        """
        arms = {side: [(self.arms[side], _ARM), (self.hands[side], _KEEP)] for side in self.order}
        layers = [
            *((piece, _KEEP) for piece in self.hair_behind),
            *(layer for side in self.behind for layer in arms[side]),
            (self.chest, 0),
            (self.neck, _KEEP),
            *((piece, 0) for piece in self.legs),
            *((piece, _KEEP) for piece in self.shoes),
            *(layer for side in self.before for layer in arms[side]),
            *((piece, _KEEP) for piece in (*self.head, *self.bag)),
        ]
        return [(shape, value) for piece, value in layers for shape in piece.shapes]


def _dressed(bare: _Bare, outfit: Outfit, body: Body, resolution: float) -> list[Piece]:
    """Everything to paint, back to front."""
    tailors = [Tailor(garment, body, resolution, outfit.inner, outfit.tucked) for garment in outfit.garments()]
    top = next(tailor for tailor in tailors if tailor.garment.cloth_type != LOWER)
    bottom = next(tailor for tailor in tailors if tailor.garment.cloth_type != UPPER)

    pieces = [*bare.hair_behind]
    for side in bare.behind:
        pieces += [bare.arms[side], bare.hands[side], *top.sleeve(side)]
    # The torso's cloth lies over the shoulders, the arms over the torso's cloth: arms are painted in two goes.
    pieces += [*(bare.arms[side] for side in bare.before), bare.chest, bare.neck, *bare.legs]
    below = bottom.below()
    above = [*(piece for side in bare.before for piece in top.sleeve(side)), *top.above()]
    pieces += [*above, *below] if outfit.tucked else [*below, *above]
    if bottom.garment.cloth_type == LOWER and bottom.garment.belted and outfit.tucked:
        pieces.append(bottom.belt())
    pieces += bare.shoes
    for side in bare.before:
        pieces += [bare.arms_over[side], bare.hands[side], *top.sleeve(side, bare.over)]
    if outfit.scarf is not None:
        pieces += _scarf(outfit.scarf, body)
    return [*pieces, *bare.head, *bare.bag]


def _scarf(colour: str, body: Body) -> list[Piece]:
    centre = body.project(np.array([0.0, 0.168, 0.006]))
    ring = disc(centre, 0.050, 0.019, 24)
    rgb = PALETTE[colour]
    pieces = [Piece("scarf ring", SCARF, [ring], rgb, relief=0.006)]
    if body.faces_viewer:
        x = body.surface(0.022, 0.2)[0]
        end = points((x - 0.014, 0.170), (x + 0.014, 0.170), (x + 0.020, 0.300), (x - 0.018, 0.302))
        dark = shaded(rgb, 0.8)
        line = Detail(points((x - 0.018, 0.288), (x + 0.019, 0.287)), dark, 0.004)
        pieces.insert(0, Piece("scarf end", SCARF, [end], rgb, relief=0.008, details=[line]))
    return pieces


def _parse(canvas: Canvas, body: Body) -> Image.Image:
    """The window's label map; bare chest counts as the arm of its side."""
    window = canvas.window
    middle = int(np.clip(round(window.origin[0]), 0, window.width))
    on_left, on_right = (people.ARM[-1], people.ARM[1]) if body.faces_viewer else (people.ARM[1], people.ARM[-1])
    labels = canvas.labels(chest=on_right)
    labels.paste(canvas.labels(chest=on_left).crop((0, 0, middle, window.height)), (0, 0))
    return labels


def _agnostic(body: Body, undressed: LabelMap, scale: float, origin: tuple[float, float]) -> dict[int, Mask]:
    """The areas to repaint for the three garment types, from the skeleton alone."""
    heights = np.array([0.158, 0.172, 0.20, 0.25, 0.32, 0.40, 0.47, 0.525, 0.575])
    left, right = body.outline(heights, np.array([0.012, 0.02, 0.03, 0.034, 0.038, 0.036, 0.034, 0.034, 0.034]))
    trunk = np.concatenate([np.stack([left, heights], axis=1), np.stack([right, heights], axis=1)])
    widths = body.arm_widths()
    upper_shapes = []
    for side in (1, -1):
        arm = hull_of_discs(body.project(body.arm(side)[:3]), [widths[0] + 0.026, widths[2] + 0.028, widths[4] + 0.026])
        upper_shapes.append(hull(np.concatenate([trunk, arm])))
    hips_y = np.array([WAIST_Y - 0.012, 0.43, 0.475, 0.53])
    left, right = body.outline(hips_y, np.array([0.020, 0.026, 0.034, 0.040]))
    cloud = [np.stack([left, hips_y], axis=1), np.stack([right, hips_y], axis=1)]
    for hip, knee, ankle in (body.project(body.leg(side)) for side in (1, -1)):
        thigh = (hip + knee) / 2
        for centre, reach in ((thigh, 0.100), (knee, 0.112), ((knee + ankle) / 2, 0.112), (ankle, 0.105)):
            cloud.append(disc(centre, reach, 0.020, 12))
    lower_shape = hull(np.concatenate(cloud))
    whole = Window(0, 0, undressed.shape[1], undressed.shape[0], scale, origin, 1)
    keep, arms = undressed == _KEEP, undressed == _ARM
    upper = (np.asarray(whole.silhouettes([(shape, 1) for shape in upper_shapes])) == 1) & ~keep
    lower = (np.asarray(whole.silhouettes([(lower_shape, 1)])) == 1) & ~keep
    # A hand that hangs before the hips is kept, and so is the forearm that leads to it.
    return {UPPER: upper, LOWER: lower & ~arms, FULL: upper | lower}
