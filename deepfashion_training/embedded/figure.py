"""Draws a person in an outfit: photo, parse map, agnostic masks, and each garment laid out flat.

Any person can be combined with any outfit and any pose. The agnostic masks come from the body alone, so they are the
same whatever is worn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from deepfashion_training.embedded import people
from deepfashion_training.embedded.body import FLAT_POSE, WAIST_Y, Body, Person, Pose
from deepfashion_training.embedded.garments import Garment, Outfit
from deepfashion_training.embedded.painting import (
    Canvas,
    Colour,
    Detail,
    LabelMap,
    Piece,
    Placement,
    Points,
    across,
    disc,
    hull,
    hull_of_discs,
    points,
    shaded,
)
from deepfashion_training.embedded.patterns import PALETTE
from deepfashion_training.embedded.tailoring import GARMENT_LABELS, Tailor
from deepfashion_training.garment_types import FULL, LOWER, UPPER

Mask = npt.NDArray[np.bool_]

SCARF = 17
#: Labels of everything that counts as clothes.
CLOTHES_LABELS: tuple[int, ...] = (4, 5, 6, 7, 8, 17)

#: Tones of the walls that people stand before.
WALLS: tuple[Colour, ...] = (
    (236, 234, 230), (224, 226, 230), (242, 238, 230), (214, 220, 222), (232, 222, 212), (206, 214, 206),
    (228, 214, 214), (202, 206, 218), (240, 232, 216), (192, 196, 200), (218, 228, 234), (186, 180, 172),
    (246, 246, 246), (212, 200, 188), (176, 190, 192), (226, 232, 220),
)  # fmt: skip

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

    ``size`` is (height, width) in pixels, at least 64 each. The same arguments give the same pixels.
    """
    body = Body(person.gender, person.girth, pose)
    scale = min(size[0] * pose.size, size[1] / (0.46 if pose.half else 0.62))
    top = 0.045 * size[0] if pose.from_top else 0.965 * size[0] - scale * 0.995
    if pose.half is None:
        top = max(0.0, top)
    place = Placement(size, scale, (size[1] / 2 + pose.shift * min(size), top))
    photo = _background(np.random.default_rng([background_seed, 77]), size, soles=top + scale, bare=bare_wall)
    _floor_shadow(photo, body, place)
    bare = _Bare(person, body)
    canvas = Canvas(photo, place, _dressed(bare, outfit, body, scale * place.factor))
    # In the parse map a bare chest belongs to the arm of its side: ATR has no label for it.
    on_left, on_right = (people.ARM[side] for side in ((-1, 1) if body.faces_viewer else (1, -1)))
    left_half = np.arange(size[1]) < round(place.origin[0])
    parse = np.where(left_half, canvas.labels(chest=on_left), canvas.labels(chest=on_right))
    undressed = place.silhouettes(bare.shapes(), place.factor)
    return Drawing(photo, parse, undressed == _KEEP, _agnostic(body, undressed, place))


def draw_flat(
    garment: Garment, gender: str, size: tuple[int, int] = (384, 288), inner: str = "white"
) -> tuple[Image.Image, Mask]:
    """The garment alone, laid out on white: RGB picture and bool mask [H, W] of where it lies.

    Cloth and cut are those that ``draw_person`` puts on an average body of that gender. ``inner`` is the colour of
    the tee that shows in an open top.
    """
    resolution = 1.2 * size[0] * Placement(size, 1.0, (0.0, 0.0)).factor
    tailor = Tailor(garment, Body(gender, 1.0, FLAT_POSE), resolution, inner)
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
    return picture, Canvas(picture, Placement(size, scale, origin), pieces).labels(chest=0) > 0


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
    tailors = [Tailor(garment, body, resolution, outfit.inner, outfit.tucked) for garment in outfit.garments]
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
    ring = disc(body.project(np.array([0.0, 0.168, 0.006])), 0.050, 0.019, 24)
    rgb = PALETTE[colour]
    pieces = [Piece("scarf ring", SCARF, [ring], rgb, relief=0.006)]
    if body.faces_viewer:
        x = body.surface(0.022, 0.2)[0]
        end = points((x - 0.014, 0.170), (x + 0.014, 0.170), (x + 0.020, 0.300), (x - 0.018, 0.302))
        line = Detail(points((x - 0.018, 0.288), (x + 0.019, 0.287)), shaded(rgb, 0.8), 0.004)
        pieces.insert(0, Piece("scarf end", SCARF, [end], rgb, relief=0.008, details=[line]))
    return pieces


def _agnostic(body: Body, undressed: LabelMap, place: Placement) -> dict[int, Mask]:
    """The areas to repaint for the three garment types, from the skeleton alone."""
    heights = np.array([0.158, 0.172, 0.20, 0.25, 0.32, 0.40, 0.47, 0.525, 0.575])
    ease = np.array([0.012, 0.02, 0.03, 0.034, 0.038, 0.036, 0.034, 0.034, 0.034])
    trunk = across(*body.outline(heights, ease), heights)
    widths = body.arm_widths()
    upper_shapes = []
    for side in (1, -1):
        arm = hull_of_discs(body.project(body.arm(side)[:3]), [widths[0] + 0.026, widths[2] + 0.028, widths[4] + 0.026])
        upper_shapes.append(hull(np.concatenate([trunk, arm])))
    heights = np.array([WAIST_Y - 0.012, 0.43, 0.475, 0.53])
    cloud = [across(*body.outline(heights, np.array([0.020, 0.026, 0.034, 0.040])), heights)]
    for hip, knee, ankle in (body.project(body.leg(side)) for side in (1, -1)):
        thigh = (hip + knee) / 2
        for centre, reach in ((thigh, 0.100), (knee, 0.112), ((knee + ankle) / 2, 0.112), (ankle, 0.105)):
            cloud.append(disc(centre, reach, 0.020, 12))
    lower_shapes = [hull(np.concatenate(cloud))]
    keep, arms = undressed == _KEEP, undressed == _ARM
    upper, lower = (
        (place.silhouettes([(shape, 1) for shape in shapes], 1) == 1) & ~keep for shapes in (upper_shapes, lower_shapes)
    )
    # A hand that hangs before the hips is kept, and so is the forearm that leads to it.
    return {UPPER: upper, LOWER: lower & ~arms, FULL: upper | lower}


def _gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    rows = np.linspace(np.array(top, float), np.array(bottom, float), size[1]).round().astype(np.uint8)
    return Image.fromarray(rows[:, None]).resize(size, Image.Resampling.NEAREST)


def _fill(image: Image.Image, shape: Points, colour: Colour) -> None:
    """A polygon in pixels with smooth edges."""
    left, top = np.floor(shape.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(shape.max(axis=0)).astype(int).tolist()
    mask = Image.new("L", (2 * (right - left), 2 * (bottom - top)), 0)
    ImageDraw.Draw(mask).polygon(((shape - np.array([left, top])) * 2).ravel().tolist(), fill=255)
    image.paste(colour, (left, top), mask.reduce(2))


def _background(rng: np.random.Generator, size: tuple[int, int], soles: float, bare: bool = False) -> Image.Image:
    """An RGB picture of ``size`` = (height, width); ``soles`` is the pixel row that the feet stand on.

    A ``bare`` studio has a wall and no more: no floor that ends, nothing that stands or hangs there.
    """
    height, width = size
    red, green, blue = (np.array(WALLS[rng.integers(len(WALLS))]) + rng.integers(-8, 9, 3)).clip(0, 255).tolist()
    wall: Colour = (red, green, blue)
    light, dark = shaded(wall, float(rng.uniform(1.0, 1.25))), shaded(wall, float(rng.uniform(0.90, 0.98)))
    image = _gradient((width, height), light, dark)
    if bare:
        return image
    draw = ImageDraw.Draw(image)
    horizon = int(min(0.93 * height, soles - height * rng.uniform(0.05, 0.13)))
    props = ("none", "window", "plant", "panel", "stripe", "arch")
    prop = str(rng.choice(props, p=(0.44, 0.12, 0.12, 0.12, 0.10, 0.10)))
    side = -1 if rng.random() < 0.5 else 1
    middle = width / 2 + side * (0.25 * height if width > 0.9 * height else 0.30 * width) * rng.uniform(0.9, 1.2)
    unit = height / 100
    if prop == "panel":
        draw.rectangle((min(middle, middle + side * width), 0, max(middle, middle + side * width), height),
                       fill=shaded(wall, 0.93))  # fmt: skip
    elif prop == "stripe":
        y = height * rng.uniform(0.25, 0.55)
        draw.rectangle((0, y, width, y + 7 * unit), fill=shaded(wall, 0.90))
    elif prop == "arch":
        bow = disc((width / 2, 40 * unit), 34 * unit, count=72)
        foot = points((width / 2 - 34 * unit, height), (width / 2 + 34 * unit, height))
        _fill(image, np.concatenate([bow[36:], bow[:1], foot[::-1]]), shaded(wall, 0.94))
    elif prop == "window":
        x, y, frame = middle, 10 * unit, shaded(wall, 1.7)
        draw.rectangle((x - 13 * unit, y, x + 13 * unit, y + 36 * unit), fill=frame)
        draw.rectangle((x - 11.6 * unit, y + 1.4 * unit, x + 11.6 * unit, y + 34.6 * unit), fill=(214, 230, 240))
        bar = max(1, round(1.2 * unit))
        draw.line((x, y, x, y + 36 * unit), fill=frame, width=bar)
        draw.line((x - 13 * unit, y + 18 * unit, x + 13 * unit, y + 18 * unit), fill=frame, width=bar)
    if prop in ("window", "plant") or rng.random() < 0.62:
        floor = shaded(wall, float(rng.uniform(0.80, 0.90)))
        image.paste(_gradient((width, height - horizon), floor, shaded(floor, 1.08)), (0, horizon))
        draw.line((0, horizon, width, horizon), fill=shaded(wall, 0.78), width=max(1, round(0.35 * unit)))
    if prop == "plant":
        foot_y = min(height, horizon + 4 * unit)
        leaf_green: Colour = (104, 138, 110) if rng.random() < 0.5 else (132, 152, 112)
        for lean in np.linspace(-1, 1, 7).tolist():
            cos, sin = np.cos(0.62 * lean), np.sin(0.62 * lean)
            leaf = disc((0, -11 * unit), 2.3 * unit, 11 * unit, 18) @ np.array([[cos, sin], [-sin, cos]])
            _fill(image, leaf + np.array([middle, foot_y - 8 * unit]), shaded(leaf_green, 1.0 + 0.12 * abs(lean)))
        pot = points((-5, -9), (5, -9), (3.8, 0), (-3.8, 0)) * unit + np.array([middle, foot_y])
        _fill(image, pot, (190, 142, 112))
    return image


def _floor_shadow(photo: Image.Image, body: Body, place: Placement) -> None:
    """A soft shadow under the feet."""
    scale = place.scale
    left, right = (body.project(body.leg(side)[2])[0] for side in (1, -1))
    x = (left + right) / 2 * scale + place.origin[0]
    y = 0.990 * scale + place.origin[1]
    if y > photo.height + 0.02 * scale:
        return
    half = (abs(left - right) / 2 + 0.09) * scale
    box = (int(x - half * 1.5), int(y - 0.05 * scale), int(x + half * 1.7), int(y + 0.05 * scale))
    wide, high = max(2, (box[2] - box[0]) // 3), max(2, (box[3] - box[1]) // 3)
    shadow = Image.new("L", (wide, high), 0)
    ImageDraw.Draw(shadow).ellipse((wide * 0.2, high * 0.3, wide * 0.8, high * 0.7), fill=92)
    shadow = shadow.filter(ImageFilter.GaussianBlur(high * 0.12)).resize((box[2] - box[0], box[3] - box[1]))
    photo.paste((40, 38, 44), box[:2], shadow)
