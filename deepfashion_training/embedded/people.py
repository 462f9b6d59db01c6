"""The parts of a person that no outfit changes, as pieces to paint: skin, head, hair, shoes, bag."""

from __future__ import annotations

import numpy as np

from deepfashion_training.embedded.body import SHOE_COLOURS, Body, Person
from deepfashion_training.embedded.painting import (
    Detail,
    Piece,
    Points,
    across,
    disc,
    hull,
    hull_of_discs,
    points,
    shaded,
    spline,
    star,
    tube,
    vec,
)

HAT, HAIR, SUNGLASSES, FACE, BAG = 1, 2, 3, 11, 16
#: Hair styles that hide ears and nape.
_OVER_EARS = ("long", "wavy", "bob", "afro")
#: Labels of the person's left and right shoe, leg and arm, by side (1 left, -1 right).
SHOE, LEG, ARM = {1: 9, -1: 10}, {1: 12, -1: 13}, {1: 14, -1: 15}


def torso(person: Person, body: Body) -> list[Piece]:
    """Neck and torso in skin. The parse map gives the chest to the arm of its side: ATR has no torso label."""
    heights = np.concatenate([np.linspace(0.158, 0.215, 8), np.linspace(0.225, 0.53, 14)])
    trunk = across(*body.outline(heights), heights)
    top = body.project(np.array([0.0, 0.10, 0.004]))
    base_left, base_right = body.outline(np.array([0.164]))
    half = 0.025 if body.woman else 0.031
    neck = points((top[0] - half, 0.10), (top[0] + half, 0.10), (base_right[0], 0.164), (base_left[0], 0.164))
    bones = []
    if body.faces_viewer:
        for side in (-1, 1):
            bone = np.stack([body.surface(side * x, y) for x, y in ((0.014, 0.190), (0.034, 0.186), (0.056, 0.184))])
            bones.append(Detail(spline(bone), shaded(person.skin, 0.88), 0.003))
    return [
        Piece("trunk", 0, [trunk], person.skin, relief=0.012, details=bones),
        Piece("trunk", FACE, [neck], shaded(person.skin, 0.955), relief=0.006),
    ]


def arm(person: Person, body: Body, side: int, over: bool = False) -> Piece:
    """A bare arm down to the wrist; ``over`` the clothes of the torso its top is hidden by them."""
    shoulder, elbow, wrist, _ = body.project(body.arm(side))
    widths = body.arm_widths()
    if over:
        spread = np.interp(np.linspace(0, 1, 4), [0, 0.5, 1], widths[:3])
        shapes = [upper_arm(body, side, 1.0, spread, inside=(-1.0, -0.75, 0.45, 1.0))]
    else:
        shapes = [disc(shoulder, widths[0]), tube(np.stack([shoulder, (shoulder + elbow) / 2, elbow]), widths[:3])]
    shapes += [
        disc(elbow, widths[2]),
        tube(np.stack([elbow, (elbow + wrist) / 2, wrist]), widths[2:]),
        disc(wrist, widths[4]),
    ]
    # Shoulder and trunk are one skin: no line runs between them.
    return Piece("trunk", ARM[side], shapes, person.skin, relief=0.007)


def upper_arm(
    body: Body, side: int, end: float, half_widths: Points, inside: tuple[float, ...] = (-0.78, -0.35, 0.8, 1.0)
) -> Points:
    """The upper arm down to the share ``end`` of its length, as it comes out from under the torso's cloth.

    ``half_widths`` [4] are spread over that share. The inner edge begins at the shoulder's outside, so that it falls
    like the crease of an armhole; ``inside`` is that edge in half widths at four places. Skin keeps farther out than
    cloth, so that it never shows along a sleeve.
    """
    shoulder, elbow, _, _ = body.project(body.arm(side))
    shares = np.linspace(0.0, end, 9)
    path = shoulder + shares[:, None] * (elbow - shoulder)
    outer = np.interp(shares, np.linspace(0, end, 4), half_widths)
    inner = outer * np.interp(shares, [0.0, 0.18, 0.42, 1.0], inside)
    leftward = (side == 1) != body.faces_viewer
    return tube(path, outer, inner) if leftward else tube(path, inner, outer)


def hand(person: Person, body: Body, side: int) -> Piece:
    """A hand: palm, fingers and thumb."""
    _, _, wrist, knuckles = body.project(body.arm(side))
    way = knuckles - wrist
    length = max(1e-6, float(np.hypot(*way)))
    way = way / length
    inward = np.array([way[1], -way[0]]) * (-side if body.faces_viewer else side)
    size = 1.0 if body.woman else 1.15
    palm = hull_of_discs([wrist + way * 0.006, wrist + way * 0.028], [0.0125 * size, 0.0155 * size])
    fingers = hull_of_discs([wrist + way * 0.030, wrist + way * 0.056 * size], [0.0140 * size, 0.0080 * size])
    thumb = hull_of_discs([wrist + way * 0.014, wrist + way * 0.036 + inward * 0.016], [0.008, 0.0055])
    return Piece("trunk", ARM[side], [palm, fingers, thumb], person.skin, relief=0.005)


def leg(person: Person, body: Body, side: int) -> Piece:
    """A bare leg from the hip to the ankle."""
    joints = body.project(body.leg(side))
    _, knee, ankle = joints
    path = spline(joints, 8)
    widths = np.interp(np.linspace(0, 1, len(path)), [0, 0.25, 0.48, 0.68, 1], body.leg_widths())
    crease = spline(points((-0.011, 0.004), (0.0, 0.010), (0.011, 0.004)) + knee)
    details = [Detail(crease, shaded(person.skin, 0.88), 0.003)] if body.faces_viewer else []
    instep = hull_of_discs([ankle, ankle + vec(0.0, 0.030)], [widths[-1], 0.015])
    return Piece(f"leg {side}", LEG[side], [tube(path, widths), instep], person.skin, relief=0.009, details=details)


def shoe(person: Person, body: Body, side: int) -> Piece:
    """A shoe, its toe pointing where the foot does."""
    joint = body.leg(side)[2]
    ankle, toe = body.project(joint), body.project(joint + np.array([side * 0.014, 0.0, 0.066]))
    drop = 0.012 * body.cos  # feet that point at the viewer end lower on the picture
    wide = 0.0 if body.woman else 0.002
    heel_at = ankle + vec(0.0, 0.032)
    ball_at = vec(0.45 * ankle[0] + 0.55 * toe[0], ankle[1] + 0.034 + max(0.5 * drop, 0.0))
    toe_at = vec(toe[0], ankle[1] + 0.038 + max(drop, -0.002))
    colour = SHOE_COLOURS[person.shoe_colour]
    dark = shaded(colour, 0.7) if sum(colour) > 200 else shaded(colour, 1.4)
    foot = hull_of_discs([heel_at, ball_at, toe_at], [0.0185 + wide, 0.0195 + wide, 0.0145 + wide])
    shapes, details = [foot], []
    low = float(foot[:, 1].max())
    ends = float(foot[:, 0].min()), float(foot[:, 0].max())
    if person.shoes == "boots":
        shapes.insert(0, hull_of_discs([ankle - vec(0.0, 0.034), heel_at], [0.0205 + wide, 0.0185 + wide]))
        cuff = points((ankle[0] - 0.020, ankle[1] - 0.044), (ankle[0] + 0.020, ankle[1] - 0.044))
        details.append(Detail(cuff, dark, 0.004))
    elif person.shoes == "sneakers":
        shapes.insert(0, hull_of_discs([ankle + vec(0.0, 0.010), heel_at], [0.0185 + wide, 0.0185 + wide]))
        sole = points((ends[0] + 0.008, low - 0.004), (ends[1] - 0.008, low - 0.004))
        details.append(Detail(sole, (246, 246, 244) if sum(colour) < 680 else (170, 172, 176), 0.007))
        if body.faces_viewer:
            for share in (0.35, 0.65):
                lace = heel_at + share * (toe_at - heel_at) - vec(0.0, 0.010)
                details.append(Detail(np.stack([lace - vec(0.007, 0.0), lace + vec(0.007, 0.0)]), dark, 0.003))
    else:
        # The opening that the foot goes into, continued by the skin of the instep.
        if body.faces_viewer:
            opening = hull_of_discs([ankle + vec(0.0, 0.014), 0.7 * heel_at + 0.3 * toe_at], [0.0125, 0.0100])
            details.append(Detail(opening, person.skin))
        if person.shoes == "sandals":
            strap = 0.8 * heel_at + 0.2 * toe_at - vec(0.0, 0.008)
            details.append(Detail(np.stack([strap - vec(0.015, 0.0), strap + vec(0.015, 0.0)]), colour, 0.006))
    return Piece(f"shoe {side}", SHOE[side], shapes, colour, relief=0.006, details=details)


def bag(person: Person, body: Body) -> list[Piece]:
    """The bag, if there is one: a tote in the hand, or a shoulder bag on its strap."""
    if person.bag is None:
        return []
    side = person.bag_side
    shoulder, _, wrist, knuckles = body.project(body.arm(side))
    dark = shaded(person.bag_colour, 0.72)
    if person.bag == "tote":
        top = wrist + (knuckles - wrist) * 1.1
        grip = points((-0.028, 0.070), (-0.020, 0.010), (0.020, 0.010), (0.028, 0.070)) + top
        box = points((-0.052, 0.066), (0.052, 0.066), (0.060, 0.176), (-0.060, 0.176)) + top
        return [
            Piece("bag strap", BAG, [tube(spline(grip, 5), np.full(16, 0.0045))], dark, relief=0.002),
            Piece("bag", BAG, [box], person.bag_colour, relief=0.012,
                  details=[Detail(box[:2] + vec(0.0, 0.012), dark, 0.004)]),
        ]  # fmt: skip
    x = 0.118 * (side * body.cos) * body.girth + 0.02 * body.sin
    strap = points((shoulder[0] * 0.62, 0.186), (x * 0.98, 0.30), (x, 0.415))
    box = np.concatenate([points((x - 0.040, 0.405), (x + 0.040, 0.405)),
                          disc((x, 0.468), 0.043, 0.024, 24)[:13]])  # fmt: skip
    flap = points((x - 0.040, 0.405), (x + 0.040, 0.405), (x + 0.030, 0.440), (x - 0.030, 0.440))
    return [
        Piece("bag strap", BAG, [tube(strap, np.full(3, 0.0045))], dark, relief=0.002),
        Piece("bag", BAG, [hull(box)], person.bag_colour, relief=0.010, details=[Detail(flap, dark)]),
    ]


class Head:
    """Head, hair and face of one person, turned by the pose."""

    def __init__(self, person: Person, body: Body) -> None:
        self.person, self.body = person, body
        angle = np.radians(body.pose.yaw + body.pose.head_turn)
        self.cos, self.sin = float(np.cos(angle)), float(np.sin(angle))
        self.centre = body.project(np.array([0.0, 0.0, 0.006])) + vec(0.0, 0.064)
        self.wide, self.high = (0.0480, 0.063) if body.woman else (0.0490, 0.064)

    @property
    def from_behind(self) -> bool:
        """Whether only hair shows."""
        return self.cos < -0.45

    def _at(self, *pairs: tuple[float, float]) -> Points:
        return points(*pairs) + self.centre

    def fall(self) -> list[Piece]:
        """Hair that falls behind the shoulders; nothing for short hair."""
        style, w, h = self.person.hair_style, self.wide, self.high
        back = -0.024 * self.sin
        if style in ("long", "wavy"):
            end = 0.175 if style == "long" else 0.160
            swell = 1.12 if style == "long" else 1.34
            half = np.array([1.08, 1.16, 1.14 * swell, 1.10 * swell, 0.80 * swell]) * w * (1 - 0.30 * abs(self.sin))
            drop = np.array([-0.35 * h, 0.1 * h, 0.070, 0.125, end])
            aside = back * np.array([0.3, 0.6, 1.0, 1.2, 1.3])
            wave = np.array([0.0, 0.004, -0.004, 0.006, -0.002]) * (style == "wavy")
            right = np.stack([aside + half + wave, drop], axis=1)
            left = np.stack([aside - half - wave, drop], axis=1)
            shape = np.concatenate([spline(right, 5), spline(left[::-1], 5)]) + self.centre
        elif style == "bob":
            shape = hull_of_discs(
                self._at((back * 0.4, -0.2 * h), (back - w * 0.45, 0.062), (back + w * 0.45, 0.062)),
                [w * 1.12, w * 0.62, w * 0.62],
            )
        elif style == "ponytail":
            tail = self._at((-0.9 * w * self.sin, -0.03), (-0.072 * self.sin, 0.01), (-0.080 * self.sin, 0.07),
                            (-0.066 * self.sin, 0.125))  # fmt: skip
            shape = tube(spline(tail, 5), np.interp(np.linspace(0, 1, 16), [0, 0.4, 1], [0.010, 0.022, 0.006]))
        else:
            return []
        colour = shaded(self.person.hair_colour, 0.88)
        return [Piece("hair back", HAIR, [shape], colour, relief=0.012)]

    def _skull(self) -> list[Piece]:
        style, w, h = self.person.hair_style, self.wide, self.high
        back = -0.010 * self.sin
        grow = {"afro": 1.48, "buzz": 1.0, "crop": 1.03, "bun": 1.06}.get(style, 1.10)
        lift = {"afro": -0.016, "quiff": -0.006}.get(style, -0.003)
        if style == "afro":
            shapes = [star((self.centre[0] + back, self.centre[1] + lift), w * grow, tips=16, inner=0.93)]
        else:
            shapes = [disc(self.centre + vec(back, lift - 0.004), w * grow, h * (grow * 0.985), 28)]
        if style == "bun":
            knot = self.centre + vec(-0.6 * w * self.sin, -h - 0.006 + 0.014 * abs(self.sin))
            shapes.append(disc(knot, 0.024, 0.022))
        if style == "quiff" and not self.from_behind:
            shapes.append(hull_of_discs(self._at((0.020 * self.sin, -h * 0.92), (0.016 + 0.03 * self.sin, -h * 0.98)),
                                        [0.024, 0.018]))  # fmt: skip
        hair = shaded(self.person.hair_colour, 1.12 if style == "buzz" else 1.0)
        return [Piece("hair", HAIR, shapes, hair, relief=0.010)]

    def pieces(self) -> list[Piece]:
        """The head in painter's order: hair, ears, face, fringe, glasses, hat; from behind, what hangs down last."""
        if not self.from_behind:
            return [*self._skull(), *self._ears(), self._face(), *self._fringe(), *self._glasses(), *self._hat()]
        nape, tail = [], self.fall()
        if self.person.hair_style not in _OVER_EARS:
            shape = disc(self.centre + vec(0.0, 0.014), self.wide * 0.86, self.high * 0.82)
            nape = [Piece("nape", FACE, [shape], shaded(self.person.skin, 0.95), relief=0.006)]
        if self.person.hair_style == "ponytail":
            path = spline(self._at((0.0, -0.010), (0.004, 0.035), (-0.004, 0.085), (0.002, 0.130)), 5)
            shape = tube(path, np.interp(np.linspace(0, 1, 16), [0, 0.4, 1], [0.012, 0.023, 0.005]))
            tail = [Piece("hair tail", HAIR, [shape], shaded(self.person.hair_colour, 0.9), relief=0.010)]
        return [*nape, *self._skull(), *tail, *self._hat()]

    def _ears(self) -> list[Piece]:
        if self.person.hair_style in _OVER_EARS:
            return []
        ears = []
        for side in (-1, 1):
            if side * self.sin > 0.35:  # hidden behind the cheek
                continue
            x = side * self.wide * max(0.12, self.cos) - 0.006 * self.sin
            ears.append(disc(self.centre + vec(x, 0.010), 0.009, 0.014, 12))
        return [Piece("ear", FACE, ears, shaded(self.person.skin, 0.95), relief=0.004)] if ears else []

    def _face(self) -> Piece:
        w, h, turn = self.wide, self.high, self.sin
        narrow = 0.72 + 0.28 * max(0.0, self.cos)
        x = 0.016 * turn
        upper = {"afro": -0.74, "buzz": -0.62, "crop": -0.64}.get(self.person.hair_style, -0.70) * h
        jaw = 0.62 if self.body.woman else 0.74
        half = np.array([0.50, 0.90, 0.95, 0.90, jaw, 0.22]) * w * narrow
        down = np.array([upper, upper * 0.55, 0.0, 0.45 * h, 0.80 * h, 1.06 * h])
        lean = x + 0.010 * turn * np.array([0.0, 0.0, 0.1, 0.3, 0.7, 0.9])
        around = across(lean + half, lean - half, down)
        outline = spline(np.concatenate([around, around[:1]]), 4) + self.centre
        shapes = [outline]
        if abs(turn) > 0.6:  # a nose in profile
            tip = np.sign(turn) * (abs(x) + w * narrow * 0.93)
            shapes.append(self._at((tip * 0.9, -0.010), (tip + np.sign(turn) * 0.010, 0.016), (tip * 0.88, 0.022)))
        details = self._features(x, narrow)
        if self.person.beard:
            jaw_line = outline[outline[:, 1] > self.centre[1] + 0.026]
            details.insert(0, Detail(hull(jaw_line), shaded(self.person.hair_colour, 1.08)))
        return Piece("face", FACE, shapes, self.person.skin, relief=0.008, details=details)

    def _features(self, x: float, narrow: float) -> list[Detail]:
        skin, w, turn = self.person.skin, self.wide, self.sin
        gaze = x + 0.016 * turn
        apart = 0.0190 * max(0.35, self.cos)
        limit = abs(x) + w * narrow * 0.86
        brow = shaded(self.person.hair_colour, 0.75)
        red, green, blue = (round(0.86 * s + 0.14 * c) for s, c in zip(skin, (226, 90, 90), strict=True))
        details: list[Detail] = []
        for side in (-1, 1):
            eye = gaze + side * apart
            if side * turn > 0.62 or abs(eye) > limit:
                continue
            cheek = disc(self.centre + vec(eye + side * 0.004, 0.022), 0.010 * max(0.5, self.cos), 0.007, 12)
            details.append(Detail(cheek, (red, green, blue)))
            squeeze = max(0.6, self.cos)
            details.append(Detail(disc(self.centre + vec(eye, 0.0), 0.0076 * squeeze, 0.0044, 12), (250, 250, 248)))
            iris = disc(self.centre + vec(eye + 0.001 * turn, 0.0), 0.0042 * max(0.7, squeeze), 0.0046, 10)
            details.append(Detail(iris, (48, 36, 34)))
            lid = self._at((eye - 0.0085 * squeeze, -0.002), (eye, -0.0062), (eye + 0.0085 * squeeze, -0.002))
            details.append(Detail(spline(lid), (54, 40, 38), 0.0028))
            arch = self._at((eye - 0.010 * squeeze, -0.0145), (eye, -0.0180), (eye + 0.010 * squeeze, -0.0145))
            details.append(Detail(spline(arch), brow, 0.0036))
        nose = x + 0.020 * turn
        if abs(turn) <= 0.6:
            ridge = self._at((nose + 0.002, 0.006), (nose + 0.005 + 0.003 * turn, 0.019), (nose - 0.003, 0.021))
            details.append(Detail(ridge, shaded(skin, 0.82), 0.0026))
        mouth = x + 0.017 * turn
        half = 0.0125 * max(0.5, self.cos)
        lips = self._at((mouth - half, 0.0355), (mouth - half * 0.3, 0.0330), (mouth, 0.0342),
                        (mouth + half * 0.3, 0.0330),
                        (mouth + half, 0.0355), (mouth, 0.0425))  # fmt: skip
        details.append(Detail(lips, (178, 84, 84) if self.body.woman else (158, 96, 86)))
        return details

    def _fringe(self) -> list[Piece]:
        style, w, h = self.person.hair_style, self.wide, self.high
        if style in ("buzz", "crop", "afro", "bun", "ponytail", "quiff"):
            return []
        x = 0.018 * self.sin
        swept = self._at((-w * 1.02, -0.10 * h), (-w * 0.98, -0.62 * h), (-w * 0.5, -1.04 * h), (w * 0.35, -1.04 * h),
                         (w * 0.92, -0.66 * h), (w * 1.02, -0.12 * h), (w * 0.84 + x, -0.34 * h),
                         (w * 0.30 + x, -0.66 * h), (-w * 0.30 + x, -0.44 * h), (-w * 0.86 + x, -0.24 * h))  # fmt: skip
        shapes = [spline(np.concatenate([swept, swept[:1]]), 3)]
        if style in ("long", "wavy", "bob") and self.cos > 0.3:
            fall = 0.085 if style != "bob" else 0.062
            for side in (-1, 1):
                lock = self._at((side * w * 0.92, -0.5 * h), (side * w * 1.10, 0.02), (side * w * 1.12, fall),
                                (side * w * 0.86, fall - 0.01), (side * w * 0.88 + x * 0.3, 0.01))  # fmt: skip
                shapes.append(lock)
        return [Piece("hair", HAIR, shapes, self.person.hair_colour, relief=0.006)]

    def _glasses(self) -> list[Piece]:
        if not self.person.sunglasses:
            return []
        x, apart = 0.032 * self.sin, 0.0195 * max(0.35, self.cos)
        lenses = [disc(self.centre + vec(x + side * apart, 0.001), 0.0150 * max(0.55, self.cos), 0.0115, 14)
                  for side in (-1, 1) if side * self.sin < 0.62]  # fmt: skip
        bridge = self._at((x - apart, -0.004), (x + apart, -0.004), (x + apart, 0.0), (x - apart, 0.0))
        return [Piece("sunglasses", SUNGLASSES, [*lenses, bridge], (40, 38, 44), relief=0.003)]

    def _hat(self) -> list[Piece]:
        if self.person.hat is None:
            return []
        w, h = self.wide * (1.40 if self.person.hair_style == "afro" else 1.13), self.high
        crown = disc(self.centre + vec(-0.004 * self.sin, -0.34 * h), w, h * 0.86, 32)
        crown = crown[crown[:, 1] <= self.centre[1] - 0.34 * h + 0.001]
        band = self._at((-w * 1.02, -0.50 * h), (w * 1.02, -0.50 * h), (w * 1.02, -0.26 * h), (-w * 1.02, -0.26 * h))
        dark = shaded(self.person.hat, 0.82)
        return [Piece("hat", HAT, [hull(crown)], self.person.hat, relief=0.010),
                Piece("hat band", HAT, [band], dark, relief=0.006)]  # fmt: skip
