"""A mannequin: who a person is, how they stand, and where that puts their joints and outline.

The body is a stack of ellipses (torso) and a chain of joints (limbs) in three dimensions, looked at from any side.
Body units: the standing height is 1; x to the person's left, y downward from the top of the head, z forward.
On the picture, X = x cos(yaw) + z sin(yaw), so that yaw 0 faces the viewer and 180 shows the back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from deepfashion_training.embedded.painting import Colour

Vector = npt.NDArray[np.float64]

#: Number of each view in a pose name, as on the Hub: ``<variant>_<number>_<view>``.
VIEW_NUMBERS: dict[str, int] = {"front": 1, "side": 2, "back": 3, "full": 4, "flat": 6, "additional": 7}

#: Views that show a person.
PERSON_VIEWS: tuple[str, ...] = tuple(view for view in VIEW_NUMBERS if view != "flat")

SKINS: tuple[Colour, ...] = (
    (250, 224, 205), (243, 207, 180), (231, 186, 152), (214, 165, 128),
    (186, 134, 98), (154, 104, 72), (118, 77, 53), (88, 58, 42),
)  # fmt: skip
HAIR_COLOURS: tuple[Colour, ...] = (
    (38, 30, 30), (62, 43, 34), (92, 60, 38), (134, 90, 54),
    (182, 136, 78), (222, 188, 126), (152, 66, 36), (142, 138, 136),
)  # fmt: skip
HAIR_STYLES: dict[str, tuple[str, ...]] = {
    "WOMEN": ("long", "long", "wavy", "bob", "ponytail", "bun", "afro", "pixie"),
    "MEN": ("short", "short", "crop", "quiff", "afro", "buzz", "bun"),
}
SHOES: dict[str, tuple[str, ...]] = {
    "WOMEN": ("sneakers", "flats", "heels", "boots", "sandals"),
    "MEN": ("sneakers", "loafers", "boots"),
}
SHOE_COLOURS: dict[str, Colour] = {
    "white": (240, 240, 238), "black": (44, 42, 46), "brown": (122, 82, 54), "beige": (214, 190, 158),
    "red": (184, 52, 52), "navy": (44, 58, 96), "grey": (146, 148, 152),
}  # fmt: skip
BAG_COLOURS: tuple[Colour, ...] = (
    (122, 78, 50), (48, 44, 48), (196, 158, 110), (156, 58, 62), (70, 98, 92), (226, 216, 200)
)  # fmt: skip

# Rows: y, half width, half depth, forward shift of the centre.
_WOMAN_TORSO = np.array([
    (0.150, 0.027, 0.028, -0.004), (0.166, 0.034, 0.030, -0.006), (0.178, 0.064, 0.036, -0.006),
    (0.192, 0.093, 0.040, -0.004), (0.215, 0.092, 0.048, 0.000), (0.245, 0.081, 0.057, 0.006),
    (0.285, 0.083, 0.066, 0.012), (0.330, 0.073, 0.055, 0.006), (0.385, 0.066, 0.048, 0.000),
    (0.430, 0.081, 0.057, -0.006), (0.475, 0.095, 0.068, -0.014), (0.530, 0.094, 0.062, -0.010),
])  # fmt: skip
_MAN_TORSO = np.array([
    (0.150, 0.033, 0.033, -0.004), (0.166, 0.042, 0.035, -0.006), (0.178, 0.080, 0.040, -0.006),
    (0.192, 0.111, 0.044, -0.004), (0.215, 0.112, 0.053, 0.000), (0.245, 0.100, 0.060, 0.004),
    (0.285, 0.098, 0.062, 0.008), (0.330, 0.090, 0.056, 0.006), (0.385, 0.083, 0.052, 0.004),
    (0.430, 0.085, 0.056, 0.000), (0.475, 0.090, 0.062, -0.010), (0.530, 0.089, 0.058, -0.008),
])  # fmt: skip

#: First torso height, and how many heights a body unit is divided into.
_TOP_Y, _ROWS = 0.150, 2000

HIP_Y, KNEE_Y, ANKLE_Y = 0.490, 0.720, 0.945
WAIST_Y, CROTCH_Y = 0.392, 0.525


@dataclass(frozen=True)
class Person:
    """Everything about a person that no outfit changes."""

    gender: str  # "MEN" or "WOMEN"
    skin: Colour
    hair_style: str
    hair_colour: Colour
    girth: float  # 1 is average; multiplies every width and depth
    shoes: str
    shoe_colour: str
    bag: str | None  # "tote", "shoulder" or None
    bag_colour: Colour
    bag_side: int  # 1 the person's left, -1 the right
    hat: Colour | None
    sunglasses: bool
    beard: bool


#: Degrees: upper arm away from the body and forward, then the same of the forearm.
Arm = tuple[float, float, float, float]
#: Degrees: outward, forward, and how far the shin swings back behind the thigh.
Leg = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """How a person stands, and how large the picture shows them."""

    view: str
    yaw: float  # degrees
    arms: tuple[Arm, Arm]  # the person's left, right
    legs: tuple[Leg, Leg]
    sway: float  # sideways shift of the hips, body units
    head_turn: float  # degrees, added to yaw
    size: float  # body height over canvas height
    shift: float  # sideways shift of the person on the canvas, in canvas heights
    half: str | None = None  # "upper": head to thighs, "lower": chest to feet; elbows may then stick out of the picture

    @property
    def from_top(self) -> bool:
        """Whether the head, not the feet, is what the crop keeps."""
        return self.half == "upper" or (self.half is None and self.view == "additional")


def random_person(rng: np.random.Generator) -> Person:
    """A person drawn from ``rng``; one in four is a man."""
    gender = "MEN" if rng.random() < 0.25 else "WOMEN"
    skin = SKINS[rng.integers(len(SKINS))]
    hair_colours = HAIR_COLOURS[:4] if sum(skin) < 420 else HAIR_COLOURS
    accessories = rng.random(4)
    return Person(
        gender=gender,
        skin=skin,
        hair_style=str(rng.choice(HAIR_STYLES[gender])),
        hair_colour=hair_colours[rng.integers(len(hair_colours))],
        girth=float(rng.triangular(0.90, 1.0, 1.24)),
        shoes=str(rng.choice(SHOES[gender])),
        shoe_colour=str(rng.choice(list(SHOE_COLOURS))),
        bag=None if accessories[0] > 0.18 else str(rng.choice(["tote", "shoulder"])),
        bag_colour=BAG_COLOURS[rng.integers(len(BAG_COLOURS))],
        bag_side=int(rng.choice([-1, 1])),
        hat=BAG_COLOURS[rng.integers(len(BAG_COLOURS))] if accessories[1] < 0.07 else None,
        sunglasses=bool(accessories[2] < 0.06),
        beard=bool(gender == "MEN" and accessories[3] < 0.35),
    )


def random_pose(rng: np.random.Generator, view: str, half: str | None = None, calm: bool = False) -> Pose:
    """A pose for one of ``PERSON_VIEWS``.

    ``half`` shows the "upper" or the "lower" half of the body, as shops show tops and trousers; the view "full" shows
    all of it all the same. ``calm`` people stand still and look ahead, at much the same distance.
    """
    turn = 1.0 if rng.random() < 0.5 else -1.0
    three_quarter = calm or rng.random() < 0.55
    loose = 0.4 if calm else 1.0
    yaw = {
        "front": rng.normal(0, 6 * loose),
        "side": turn * (rng.uniform(35, 55) if three_quarter else rng.uniform(68, 88)),
        "back": 180 + rng.normal(0, 9 * loose),
        "full": rng.normal(0, 14 * loose),
        "additional": turn * rng.uniform(8, 8 + 22 * loose),
    }[view]
    half = None if view == "full" else half
    low, high = {"additional": (1.10, 1.24), "full": (0.85, 0.90)}.get(view, (0.89, 0.95))
    low, high = {"upper": (1.40, 1.60), "lower": (1.24, 1.38)}.get(half or "", (low, high))
    low, high = (low + high + loose * (low - high)) / 2, (low + high + loose * (high - low)) / 2
    sideways = view == "side"
    stance = rng.random() / (2 if calm else 1)
    legs: tuple[Leg, Leg]
    if sideways:
        stride = rng.uniform(3, 13)
        legs = ((2, stride, stride * 0.5), (2, -stride * 0.7, stride * 0.9))
    elif stance < 0.5:
        legs = ((rng.uniform(2, 4.5), 0, 0),) * 2
    else:
        legs = ((rng.uniform(0, 2), 0, 0), (rng.uniform(6, 9), rng.uniform(0, 8), rng.uniform(0, 9)))
    arms = (_random_arm(rng, sideways, calm), _random_arm(rng, sideways, calm))
    sway = 0.012 if stance >= 0.5 and not sideways else 0.0
    if rng.random() < 0.5:  # mirror everything but the view's own yaw
        legs, arms, sway = legs[::-1], arms[::-1], -sway
    head_turn = float(rng.normal(0, 9 * loose))
    size = float(rng.uniform(low, high))
    shift = float(rng.uniform(-0.035, 0.035) * loose)
    return Pose(view, float(yaw), arms, legs, sway, head_turn, size, shift, half)


def _random_arm(rng: np.random.Generator, sideways: bool, calm: bool) -> Arm:
    kind = rng.random() * (0.66 if calm else 1)
    if sideways:
        swing = rng.uniform(-16, 18)
        return (rng.uniform(5, 9), swing, 3, swing + rng.uniform(8, 34))
    if kind < 0.58:
        return (rng.uniform(9, 16), rng.uniform(-5, 4), rng.uniform(2, 9), rng.uniform(6, 16))
    if kind < 0.80:  # hand on the hip
        return (rng.uniform(38, 44), -10, rng.uniform(-48, -40), 14)
    if kind < 0.92:  # forearm across the front
        return (rng.uniform(14, 20), 2, rng.uniform(-36, -24), rng.uniform(26, 38))
    return (rng.uniform(22, 30), 0, rng.uniform(20, 34), 8)


#: Arms and legs of a garment that is laid out flat.
FLAT_POSE = Pose("flat", 0.0, ((30, 0, 24, 0),) * 2, ((3.5, 0, 0),) * 2, sway=0, head_turn=0, size=0.9, shift=0)


def _direction(side: int, out: float, forward: float) -> Vector:
    out, forward = np.radians(out), np.radians(forward)
    return np.array([side * np.sin(out) * np.cos(forward), np.cos(out) * np.cos(forward), np.sin(forward)])


@dataclass(frozen=True)
class Body:
    """Joints and outlines of one person in one pose, in body units."""

    gender: str
    girth: float
    pose: Pose

    @property
    def woman(self) -> bool:
        """Whether the woman's mannequin is used."""
        return self.gender == "WOMEN"

    @cached_property
    def cos(self) -> float:
        """Cosine of the yaw: 1 from the front, 0 from the side, -1 from the back."""
        return float(np.cos(np.radians(self.pose.yaw)))

    @cached_property
    def sin(self) -> float:
        """Sine of the yaw: how far the person's front points to the right of the picture."""
        return float(np.sin(np.radians(self.pose.yaw)))

    @property
    def faces_viewer(self) -> bool:
        """Whether the front of the body is what the picture shows."""
        return self.cos > -0.1

    def project(self, joints: Vector) -> Vector:
        """Picture coordinates [..., 2] of points [..., 3]."""
        return np.stack([joints[..., 0] * self.cos + joints[..., 2] * self.sin, joints[..., 1]], axis=-1)

    def span(self, half_width: float | Vector, half_depth: float | Vector) -> Vector:
        """Half width on the picture of an upright ellipse, seen at this yaw."""
        return np.hypot(np.asarray(half_width) * self.cos, np.asarray(half_depth) * self.sin)

    def section(self, y: float | Vector) -> Vector:
        """Half width, half depth, sideways and forward centre of the torso [4,...] at height ``y``."""
        row = ((np.asarray(y) - _TOP_Y) * _ROWS + 0.5).astype(int).clip(0, self._sections.shape[1] - 1)
        return self._sections[:, row]

    @cached_property
    def _sections(self) -> Vector:
        """The four columns of ``section`` for every torso height in steps of 1 / ``_ROWS``."""
        table = _WOMAN_TORSO if self.woman else _MAN_TORSO
        y = np.arange(_TOP_Y, table[-1, 0] + 0.5 / _ROWS, 1 / _ROWS)
        width, depth, forward = (np.interp(y, table[:, 0], table[:, column]) for column in (1, 2, 3))
        # The neck and the shoulders are bone; girth shows below them.
        grown = 1 + (self.girth - 1) * np.clip((y - 0.16) / 0.10, 0.15, 1.0)
        sway = self.pose.sway * np.clip((y - 0.20) / 0.27, 0, 1)
        return np.stack([width * grown, depth * grown, sway, forward])

    def outline(self, y: Vector, ease: float | Vector = 0.0) -> tuple[Vector, Vector]:
        """Left and right X of the torso at heights ``y`` [N], ``ease`` farther out on each side."""
        width, depth, sway, forward = self.section(y)
        centre = sway * self.cos + forward * self.sin
        half = self.span(width, depth) + ease
        return centre - half, centre + half

    def surface(self, x: float, y: float, ease: float = 0.0) -> Vector:
        """Picture coordinates of the point ``x`` beside the middle of the torso's front, at height ``y``."""
        # As in ``section``, without its arrays: a hundred points of a picture are found here.
        row = min(max(int((y - _TOP_Y) * _ROWS + 0.5), 0), self._sections.shape[1] - 1)
        width, depth, sway, forward = self._sections[:, row].tolist()
        bulge = (depth + ease) * math.sqrt(max(0.0, 1 - (x / (width + ease)) ** 2))
        front = bulge if self.faces_viewer else -bulge
        return np.array([(x + sway) * self.cos + (forward + front) * self.sin, y])

    def arm(self, side: int) -> Vector:
        """Shoulder, elbow, wrist and knuckles [4, 3] of the arm at ``side`` (1 the person's left, -1 the right)."""
        out, forward, forearm_out, forearm_forward = self.pose.arms[0 if side == 1 else 1]
        reach = (0.0745 if self.woman else 0.0900) * (1 + (self.girth - 1) * 0.35)
        shoulder = np.array([side * reach, 0.214, -0.002])
        elbow = shoulder + 0.160 * _direction(side, out, forward)
        forearm = _direction(side, forearm_out, forearm_forward)
        wrist = elbow + 0.138 * forearm
        return np.stack([shoulder, elbow, wrist, wrist + 0.040 * forearm])

    def leg(self, side: int) -> Vector:
        """Hip, knee and ankle [3, 3] of the leg at ``side`` (1 the person's left, -1 the right)."""
        out, forward, bend = self.pose.legs[0 if side == 1 else 1]
        apart = (0.049 if self.woman else 0.048) * self.girth
        hip = np.array([side * apart + self.pose.sway, HIP_Y, -0.004])
        # Knees are closer together than hips are wide.
        knee = hip + (KNEE_Y - HIP_Y) * _direction(side, out - 2.0, forward)
        ankle = knee + (ANKLE_Y - KNEE_Y) * _direction(side, out - 2.5, forward - bend)
        return np.stack([hip, knee, ankle])

    def arm_widths(self) -> Vector:
        """Half widths of a bare arm at shoulder, mid upper arm, elbow, mid forearm and wrist."""
        base = [0.027, 0.0235, 0.019, 0.0195, 0.0135] if self.woman else [0.033, 0.030, 0.024, 0.024, 0.017]
        return np.array(base) * (1 + (self.girth - 1) * 0.7)

    def leg_widths(self) -> Vector:
        """Half widths of a bare leg at hip, mid thigh, knee, calf and ankle."""
        base = [0.048, 0.046, 0.031, 0.033, 0.017] if self.woman else [0.046, 0.047, 0.035, 0.036, 0.020]
        return np.array(base) * self.girth

    def far_and_near(self) -> tuple[int, int]:
        """The side (1 left, -1 right) farther from the viewer, then the nearer one."""
        return (1, -1) if self.sin > 0 else (-1, 1)

    def arm_behind(self, side: int) -> bool:
        """Whether the torso hides the arm at ``side``."""
        joints = self.arm(side)
        shoulder, elbow, wrist, _ = -joints[:, 0] * self.sin + joints[:, 2] * self.cos  # towards the viewer
        return bool(shoulder * 0.8 + elbow * 0.5 + wrist * 0.7 < -0.055)
