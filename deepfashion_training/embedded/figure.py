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
from PIL import Image, ImageDraw, ImageFilter

from deepfashion_training.embedded import people
from deepfashion_training.embedded.body import FLAT_POSE, WAIST_Y, Body, Person, Pose
from deepfashion_training.embedded.brush import Canvas, Detail, LabelMap, Piece, Window, silhouettes
from deepfashion_training.embedded.garments import Garment, Outfit
from deepfashion_training.embedded.patterns import PALETTE, shaded
from deepfashion_training.embedded.shapes import Points, disc, hull, hull_of_discs, points
from deepfashion_training.embedded.studio import background
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
    person: Person
    outfit: Outfit
    pose: Pose

    def garment_mask(self, cloth_type: int) -> Mask:
        """Where the garment of that type shows, bool [H, W]."""
        return np.isin(self.parse, GARMENT_LABELS[cloth_type])

    def clothes_mask(self) -> Mask:
        """Where any clothes show, bool [H, W]."""
        return np.isin(self.parse, CLOTHES_LABELS)


def supersampling(height: int) -> int:
    """How many samples a pixel has along each axis: enough that thin lines survive on small pictures."""
    return 4 if height <= 192 else 3 if height <= 256 else 2


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
    factor = supersampling(size[0])
    scale = min(size[0] * pose.size, size[1] / (0.46 if pose.half else 0.62))
    top = 0.045 * size[0] if pose.from_top else 0.965 * size[0] - scale * 0.995
    if pose.half is None:
        top = max(0.0, top)
    origin = (size[1] / 2 + pose.shift * min(size), top)
    photo = background(np.random.default_rng([background_seed, 77]), size, soles=top + scale, bare=bare_wall)
    _floor_shadow(photo, body, scale, origin)
    bare = _Bare(person, body)
    pieces = _dressed(bare, outfit, body, scale * factor)
    window = Window.around(pieces, size, scale, origin, factor)
    canvas = Canvas(window, photo)
    for piece in pieces:
        canvas.paint(piece)
    photo.paste(canvas.finish(), window.box)
    undressed = window.spread(silhouettes(bare.shapes(), window), size)
    return Drawing(
        photo=photo,
        parse=window.spread(_parse(canvas, body), size),
        keep=undressed == _KEEP,
        agnostic=_agnostic(body, undressed, size, scale, origin),
        person=person,
        outfit=outfit,
        pose=pose,
    )


def draw_flat(
    garment: Garment, gender: str, size: tuple[int, int] = (384, 288), inner: str = "white"
) -> tuple[Image.Image, Mask]:
    """The garment alone, laid out on white: RGB picture and bool mask [H, W] of where it lies.

    Cloth and cut are those that ``draw_person`` puts on an average body of that gender. ``inner`` is the colour of
    the tee that shows in an open top.
    """
    factor = supersampling(size[0])
    pieces = _flat_pieces(Tailor(garment, Body(gender, 1.0, FLAT_POSE), 1.2 * size[0] * factor, inner))
    corners = np.concatenate([shape for piece in pieces for shape in piece.shapes])
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    # As large as fits, but shorts stay smaller than a dress.
    scale = min(0.86 * size[0] / (bottom - top), 0.88 * size[1] / (right - left), 1.45 * size[0])
    origin = (size[1] / 2 - (left + right) / 2 * scale, size[0] / 2 - (top + bottom) / 2 * scale)
    window = Window.around(pieces, size, scale, origin, factor)
    picture = Image.new("RGB", (size[1], size[0]), (255, 255, 255))
    canvas = Canvas(window, picture)
    for piece in pieces:
        canvas.paint(piece)
    picture.paste(canvas.finish(), window.box)
    return picture, window.spread(canvas.figure(), size) > 0


def _flat_pieces(tailor: Tailor) -> list[Piece]:
    garment = tailor.garment
    if garment.cloth_type == LOWER:
        return tailor.below()
    pieces = tailor.below() if garment.cloth_type == FULL else []
    above = tailor.above()
    # The inside of the back shows through the neckline.
    neck, left, right = tailor._neck()
    height = float(neck[0, 1])
    inside = hull(
        np.concatenate(
            [neck, points((left, height - 0.004), ((left + right) / 2, height + 0.006), (right, height - 0.004))]
        )
    )
    lining = Piece("lining", tailor.label, [inside], shaded(tailor.colour, 0.62), relief=0.004)
    sleeves = [piece for side in (-1, 1) for piece in tailor.sleeve(side)]
    return [*pieces, lining, *sleeves, *above]


class _Bare:
    """The pieces of an undressed person in painter's order, shared by the photo and the masks."""

    def __init__(self, person: Person, body: Body) -> None:
        far, near = body.near_sides()
        self.order = (far, near)
        self.behind = [side for side in self.order if body.arm_behind(side)]
        self.before = [side for side in self.order if side not in self.behind]
        head = people.Head(person, body)
        self.hair_behind = head.behind()
        self.head = head.pieces()
        self.chest, self.neck = people.torso(person, body)
        self.arms = {side: people.arm(person, body, side) for side in self.order}
        self.forearms = {side: people.forearm(person, body, side) for side in self.order}
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
        pieces.append(bottom.waistband(8, (94, 62, 44)))
    pieces += bare.shoes
    for side in bare.before:
        # Seen from the side, the near shoulder lies over the torso; otherwise the torso's cloth covers its top.
        over = abs(body.sin) < 0.6
        pieces += [bare.forearms[side] if over else bare.arms[side], bare.hands[side], *top.sleeve(side, over)]
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


def _floor_shadow(photo: Image.Image, body: Body, scale: float, origin: tuple[float, float]) -> None:
    """A soft shadow under the feet."""
    ankles = [body.project(body.leg(side)[2]) for side in (1, -1)]
    x = (ankles[0][0] + ankles[1][0]) / 2 * scale + origin[0]
    y = 0.990 * scale + origin[1]
    if y > photo.height + 0.02 * scale:
        return
    half = (abs(ankles[0][0] - ankles[1][0]) / 2 + 0.09) * scale
    box = (int(x - half * 1.5), int(y - 0.05 * scale), int(x + half * 1.7), int(y + 0.05 * scale))
    wide, high = max(2, (box[2] - box[0]) // 3), max(2, (box[3] - box[1]) // 3)
    shadow = Image.new("L", (wide, high), 0)
    ImageDraw.Draw(shadow).ellipse((wide * 0.2, high * 0.3, wide * 0.8, high * 0.7), fill=92)
    shadow = shadow.filter(ImageFilter.GaussianBlur(high * 0.12)).resize((box[2] - box[0], box[3] - box[1]))
    photo.paste((40, 38, 44), box[:2], shadow)


def _parse(canvas: Canvas, body: Body) -> Image.Image:
    """The window's label map; bare chest counts as the arm of its side."""
    middle = int(np.clip(round(canvas.window.origin[0]), 0, canvas.width))
    on_left, on_right = (people.ARM[-1], people.ARM[1]) if body.faces_viewer else (people.ARM[1], people.ARM[-1])
    labels = canvas.label_image(chest=on_right)
    labels.paste(canvas.label_image(chest=on_left).crop((0, 0, middle, canvas.height)), (0, 0))
    return labels


def _agnostic(
    body: Body, undressed: LabelMap, size: tuple[int, int], scale: float, origin: tuple[float, float]
) -> dict[int, Mask]:
    """The areas to repaint for the three garment types, from the skeleton alone."""
    heights = np.array([0.158, 0.172, 0.20, 0.25, 0.32, 0.40, 0.47, 0.525, 0.575])
    left, right = body.outline(heights, np.array([0.012, 0.02, 0.03, 0.034, 0.038, 0.036, 0.034, 0.034, 0.034]))
    trunk = np.concatenate([np.stack([left, heights], axis=1), np.stack([right, heights], axis=1)])
    widths = body.arm_widths()
    upper_shapes = []
    for side in (1, -1):
        joints = [body.project(joint) for joint in body.arm(side)[:3]]
        arm = hull_of_discs(joints, [widths[0] + 0.026, widths[2] + 0.028, widths[4] + 0.026])
        upper_shapes.append(hull(np.concatenate([trunk, arm])))
    hips_y = np.array([WAIST_Y - 0.012, 0.43, 0.475, 0.53])
    left, right = body.outline(hips_y, np.array([0.020, 0.026, 0.034, 0.040]))
    cloud = [np.stack([left, hips_y], axis=1), np.stack([right, hips_y], axis=1)]
    legs = [[body.project(joint) for joint in body.leg(side)] for side in (1, -1)]
    for hip, knee, ankle in legs:
        thigh = (hip + knee) / 2
        for centre, reach in ((thigh, 0.100), (knee, 0.112), ((knee + ankle) / 2, 0.112), (ankle, 0.105)):
            cloud.append(disc(centre, reach, 0.020, 12))
    lower_shape = hull(np.concatenate(cloud))
    whole = Window(0, 0, size[1], size[0], scale, origin, 1)
    keep, arms = undressed == _KEEP, undressed == _ARM
    upper = (np.asarray(silhouettes([(shape, 1) for shape in upper_shapes], whole)) == 1) & ~keep
    lower = (np.asarray(silhouettes([(lower_shape, 1)], whole)) == 1) & ~keep
    # A hand that hangs before the hips is kept, and so is the forearm that leads to it.
    return {UPPER: upper, LOWER: lower & ~arms, FULL: upper | lower}
