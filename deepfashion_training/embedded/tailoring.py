"""Cuts garments for a body: each becomes pieces of cloth that lie where the body's joints and outline are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from deepfashion_training.embedded.body import CROTCH_Y, HIP_Y, WAIST_Y, Body, Vector
from deepfashion_training.embedded.garments import LEG_HEMS, OPEN_KINDS, SKIRT_HEMS, SLEEVES, Garment
from deepfashion_training.embedded.painting import (
    Cloth,
    Detail,
    Frame,
    Piece,
    Points,
    across,
    along,
    disc,
    hull,
    points,
    shaded,
    spline,
    tube,
    vec,
)
from deepfashion_training.embedded.patterns import PALETTE, texture
from deepfashion_training.embedded.people import upper_arm
from deepfashion_training.garment_types import FULL, LOWER, UPPER

#: ATR labels of garments by type, skirts before trousers; jumpsuits and rompers are dresses, too.
GARMENT_LABELS: dict[int, tuple[int, ...]] = {UPPER: (4,), LOWER: (5, 6), FULL: (7,)}
BELT_LABEL = 8

_NECK_HALF = {"crew": 0.036, "v": 0.040, "scoop": 0.046, "square": 0.050, "boat": 0.062, "collar": 0.036}
_NECK_DROP = {"crew": 0.022, "v": 0.078, "scoop": 0.056, "square": 0.052, "boat": 0.012, "collar": 0.040}
_ARMPIT_Y = 0.250
_HEM_DIP = 0.008


class Tailor:
    """Pieces of one garment on one body.

    ``scale`` is the texture's resolution in pixels to a body height, ``inner`` the colour of the tee under an open
    top; a ``tucked`` top ends at the waist.
    """

    def __init__(self, garment: Garment, body: Body, scale: float, inner: str = "white", tucked: bool = False) -> None:
        self.garment, self.body, self.inner, self.tucked = garment, body, inner, tucked
        self.label = GARMENT_LABELS[garment.cloth_type][0 if garment.kind == "skirt" else -1]
        self.name = f"cloth{garment.cloth_type}"
        #: Body height of the lowest hem.
        self.hem = garment.length
        if garment.cloth_type != UPPER:
            self.hem = (SKIRT_HEMS if garment.skirted else LEG_HEMS)[garment.hem]
        #: Colour of the ground, and of ribs, collars and bands: darker, or lighter where the ground is dark already.
        self.colour = garment.pattern.colour
        self.dark = sum(self.colour) <= 240
        self.trim = shaded(self.colour, 1.16 if self.dark else 0.86)
        self.cloth: Cloth | None = None
        if garment.pattern.kind != "plain":
            # Seams and motifs sit at body heights, so that all views show them alike.
            top, bottom = {UPPER: (0.12, 0.66), LOWER: (0.36, 0.99), FULL: (0.12, 0.99)}[garment.cloth_type]
            begin = WAIST_Y if garment.cloth_type == LOWER else 0.17
            seam = begin + (self.hem - begin) * (0.40 + 0.3 * (garment.pattern.share - 0.3))
            self.cloth = Cloth(texture(garment.pattern, top, bottom, scale, seam), top, scale)
        # Where the middle of the front shows, and how much of its width is left to see.
        aside = 0.05 * body.sin * (1 if body.faces_viewer else -1)
        self.front = Frame(at=(aside, 0.0), cloth=(0.0, 0.0), squeeze=max(0.55, abs(body.cos)))

    def piece(self, name: str, shapes: list[Points], frames: list[Frame] | None = None, **more: Any) -> Piece:
        """A piece of this garment's cloth; ``more`` are fields of ``Piece``."""
        frames = frames or [self.front] * len(shapes)
        return Piece(f"{self.name} {name}", self.label, shapes, self.colour, cloth=self.cloth, frames=frames, **more)

    def _sides(self, heights: Vector) -> tuple[Vector, Vector]:
        """Left and right X of the garment's torso at body heights [N]."""
        garment, body = self.garment, self.body
        left, right = body.outline(heights, garment.ease)
        straight = 0.15 if garment.cut in ("slim", "pencil", "a-line", "flared", "pleated") else 0.75
        wide_left, wide_right = body.outline(np.array([0.285]), garment.ease)
        away = straight * np.clip((heights - 0.285) / 0.06, 0, 1)
        if self.tucked:  # gathered at the waist
            away = away * np.clip((WAIST_Y + 0.012 - heights) / 0.05, 0, 1)
        return left + away * np.minimum(0, wide_left - left), right + away * np.maximum(0, wide_right - right)

    def _neck(self) -> tuple[Points, float, float]:
        """The neckline from the picture's left to right, and the X of its ends."""
        garment, body = self.garment, self.body
        neckline = garment.neckline or "crew"
        half = _NECK_HALF[neckline] + (0.006 if not body.woman else 0.0)
        height = 0.1655 + (half - 0.036) * 0.42
        centre = float(body.section(height)[3]) * body.sin
        span = float(body.span(half, 0.032))
        left, right = centre - span, centre + span
        drop = _NECK_DROP[neckline] if body.faces_viewer else 0.010
        middle = body.surface(0.0, height + drop)[0] if body.faces_viewer else centre
        low = height + drop
        if not body.faces_viewer or neckline in ("crew", "scoop", "boat"):
            between = [(left * 0.72 + middle * 0.28, low - drop * 0.22), (middle, low),
                       (right * 0.72 + middle * 0.28, low - drop * 0.22)]  # fmt: skip
        elif neckline == "square":
            shift = middle * 0.5
            between = [(left * 0.92 + shift * 0.3, low), (right * 0.92 + shift * 0.3, low)]
        else:
            between = [(middle, low)]
        line = points((left, height), *between, (right, height))
        return spline(line, 4) if len(between) == 3 else line, left, right

    def lining(self) -> Piece:
        """The inside of the back, which shows through the neckline of a garment that is laid out."""
        neck, left, right = self._neck()
        height = float(neck[0, 1])
        below = points((left, height - 0.004), ((left + right) / 2, height + 0.006), (right, height - 0.004))
        shape = hull(np.concatenate([neck, below]))
        return Piece("lining", self.label, [shape], shaded(self.colour, 0.62), relief=0.004)

    def bodice(self, bottom: float) -> Points:
        """Outline of the torso part from the neckline down to body height ``bottom``."""
        garment, body = self.garment, self.body
        neck, neck_left, neck_right = self._neck()
        shoulder = float(body.span(float(body.section(0.205)[0]), 0.036))
        heights = np.linspace(_ARMPIT_Y, bottom, 14)
        left, right = self._sides(heights)
        if garment.sleeve == "strap":
            tips, height = (neck_left - 0.015, neck_right + 0.015), float(neck[0, 1]) - 0.001
        elif garment.sleeve == "sleeveless":
            tips, height = (-0.86 * shoulder, 0.86 * shoulder), 0.1830
        else:
            tips, height = (-shoulder - 0.004, shoulder + 0.004), 0.1905
        inward = 0.96 if garment.sleeve in ("strap", "sleeveless") else 1.01
        armholes = [
            spline(points((tip, height), (tip * inward, 0.216), (side[0], heights[0])), 4)
            for tip, side in zip(tips, (left, right), strict=True)
        ]
        hem = points((left[-1], bottom), ((left[-1] + right[-1]) / 2, bottom + _HEM_DIP), (right[-1], bottom))
        return np.concatenate([
            neck[::-1],
            armholes[0],
            np.stack([left, heights], axis=1)[1:],
            spline(hem, 4),
            np.stack([right, heights], axis=1)[::-1][1:],
            armholes[1][::-1],
        ])  # fmt: skip

    def _torso_folds(self, bottom: float) -> list[Points]:
        low = min(bottom, 0.50)
        left, right = self._sides(np.array([0.34, low]))
        wide = right[1] - left[1]
        return [
            spline(points((left[0] + 0.012, 0.335), (left[0] + 0.030, 0.352), (left[0] + 0.052, 0.358))),
            spline(points((right[0] - 0.010, 0.375), (right[0] - 0.034, 0.386), (right[0] - 0.060, 0.384))),
            spline(points((right[0] - 0.016, 0.262), (right[0] - 0.036, 0.270), (right[0] - 0.050, 0.284))),
            spline(points((left[0] + 0.016, 0.262), (left[0] + 0.034, 0.268), (left[0] + 0.046, 0.280))),
            points((left[1] + wide * 0.28, low - 0.05), (left[1] + wide * 0.25, low - 0.006)),
            points((left[1] + wide * 0.72, low - 0.06), (left[1] + wide * 0.76, low - 0.006)),
        ]

    def _front_details(self, bottom: float) -> list[Detail]:
        """Buttons, collars, ribs and pockets: what shows only from the front, then what shows all round."""
        garment, body = self.garment, self.body
        details: list[Detail] = []
        neck, _, _ = self._neck()
        if garment.neckline != "collar" and garment.kind in ("tee", "sweater", "sweatshirt", "hoodie", "dress"):
            details.append(Detail(neck, self.trim, 0.007))
        if garment.kind in ("sweater", "sweatshirt", "hoodie"):
            left, right = self._sides(np.array([bottom - 0.012]))
            details.append(Detail(points((left[0], bottom - 0.011), (right[0], bottom - 0.011)), self.trim, 0.018))
        if body.cos < 0.30:
            return details
        ink = shaded(self.colour, 1.35 if self.dark else 0.72)
        if garment.kind in ("shirt", "polo", "blouse", "jumpsuit") and garment.neckline == "collar":
            last, buttons = (0.29, 3) if garment.kind == "polo" else (bottom - 0.005, 6)
            line = np.stack([body.surface(0.0, y, garment.ease) for y in np.linspace(0.205, last, 8)])
            details.append(Detail(line, ink, 0.0035))
            for y in np.linspace(0.222, last - 0.02, buttons):
                details.append(Detail(disc(body.surface(0.0, y, garment.ease), 0.0045, count=8), ink))
        if garment.kind == "hoodie":
            corners = ((-0.055, 0.44), (-0.036, 0.395), (0.036, 0.395), (0.055, 0.44))
            pocket = [body.surface(x, y, garment.ease) for x, y in corners]
            details.append(Detail(np.stack(pocket), ink, 0.004))
            for side in (-1, 1):
                cord = [body.surface(side * 0.014, y, garment.ease) for y in (0.196, 0.23, 0.258)]
                details.append(Detail(np.stack(cord), shaded(self.colour, 1.6), 0.005))
        return details

    def collar(self) -> list[Piece]:
        """What stands up around the neck: collar wings, lapels or a hood."""
        garment, body = self.garment, self.body
        neck, left, right = self._neck()
        height = float(neck[0, 1])
        if garment.kind == "hoodie":
            if body.faces_viewer:
                ring = points((left - 0.014, height + 0.010), (left - 0.004, height - 0.014), (left + 0.010, height),
                              (0.5 * (left + right), height + 0.026), (right - 0.010, height),
                              (right + 0.004, height - 0.014), (right + 0.014, height + 0.010),
                              (0.5 * (left + right), height + 0.050))  # fmt: skip
            else:
                ring = points((left - 0.018, height + 0.002), (0.5 * (left + right), height - 0.006),
                              (right + 0.018, height + 0.002), (right, height + 0.050),
                              (0.5 * (left + right), height + 0.085), (left, height + 0.050))  # fmt: skip
            closed = spline(np.concatenate([ring, ring[:1]]), 4)
            return [self.piece("hood", [closed])]
        if garment.neckline != "collar" or not body.faces_viewer:
            return []
        middle = neck[1]
        shapes = []
        for end in (left, right):
            out = np.sign(end - middle[0]) or 1.0
            shapes.append(points((end, height - 0.004), (middle[0], middle[1]),
                                 (middle[0] + out * 0.026 * max(0.4, body.cos), middle[1] + 0.012),
                                 (end + out * 0.012, height + 0.014)))  # fmt: skip
        return [Piece(f"{self.name} collar {i}", self.label, [shape], self.trim) for i, shape in enumerate(shapes)]

    def torso(self, bottom: float) -> list[Piece]:
        """The part around the torso, with what is worn under an open front."""
        garment, body = self.garment, self.body
        whole = self.bodice(bottom)
        folds = self._torso_folds(bottom)
        if garment.kind not in OPEN_KINDS:
            front = self._front_details(bottom)
            return [self.piece("torso", [whole], folds=folds, details=front, relief=0.016), *self.collar()]
        if not body.faces_viewer:
            return [self.piece("torso", [whole], folds=folds, relief=0.016)]
        # Two panels over a tee. The opening widens downwards; seen from the side it moves with the front.
        inner = Piece(f"{self.name} inner", self.label, [whole], PALETTE[self.inner], relief=0.006)
        gap = {"cardigan": 0.030, "jacket": 0.026, "vest": 0.034}[garment.kind]
        heights = np.linspace(0.166, bottom + 0.004, 10)
        half_gaps = np.interp(heights, [0.166, 0.30, bottom], [0.038, gap * 0.7, gap])
        pieces = [inner]
        for side in (-1, 1):
            edge = np.stack([body.surface(side * x, y, garment.ease) for x, y in zip(half_gaps, heights, strict=True)])
            # A panel is the bodice cut along its front edge.
            borders = np.interp(whole[:, 1], edge[:, 1], edge[:, 0])
            cut = np.maximum(whole[:, 0], borders) if side == 1 else np.minimum(whole[:, 0], borders)
            if garment.kind == "cardigan":
                lapel = Detail(edge, self.trim, 0.009)
            else:
                wing = edge[[4, 2]] + (side * 0.030 * max(0.3, body.cos), 0.0)
                lapel = Detail(np.concatenate([edge[1:6], wing]), self.trim)
            shape = np.stack([cut, whole[:, 1]], axis=1)
            pieces.append(self.piece(f"panel {side}", [shape], folds=folds[:4], details=[lapel], relief=0.012))
        return pieces

    def sleeve(self, side: int, over: bool = False) -> list[Piece]:
        """The sleeve of one arm, with its cap or, ``over`` the torso's cloth, without; nothing where there is none."""
        garment, body = self.garment, self.body
        reach = SLEEVES[garment.sleeve]
        if reach <= 0:
            return []
        shoulder, elbow, wrist, _ = body.project(body.arm(side))
        bare = body.arm_widths()
        loose = garment.ease + 0.001
        upper_share, lower_share = min(1.0, reach / 0.537), max(0.0, (reach - 0.537) / 0.463)
        shares = np.linspace(0, upper_share, 4)
        path = shoulder + shares[:, None] * (elbow - shoulder)
        # The cap is cut to the shoulder; the cloth stands off further down.
        widths = np.interp(shares, [0, 0.5, 1], bare[:3]) + loose * np.clip(0.25 + 2.5 * shares, 0, 1)
        if lower_share == 0:
            widths[-1] += 0.004
        if over:
            shapes = [upper_arm(body, side, upper_share, widths)]
        else:
            shapes = [disc(shoulder, widths[0]), tube(path, widths)]
        out = side if body.faces_viewer else -side
        frames = [_along_limb(shoulder, elbow, (0.26 * out, 0.207))] * len(shapes)
        if lower_share > 0:
            shares = np.linspace(0, lower_share, 4)
            path = elbow + shares[:, None] * (wrist - elbow)
            widths = np.interp(shares, [0, 0.5, 1], bare[2:]) + loose
            shapes += [disc(elbow, widths[0]), tube(path, widths)]
            frames += [_along_limb(elbow, wrist, (0.26 * out, 0.367))] * 2
        details = []
        if garment.kind in ("sweater", "sweatshirt", "hoodie", "cardigan", "shirt", "jumpsuit", "tee", "polo"):
            band = 0.014 if reach > 0.9 else 0.006
            details.append(Detail(_across(path, widths[-1], band / 2), self.trim, band))
        crook = elbow + (shoulder + wrist - 2 * elbow) * 0.06
        folds = [points((-0.012, -0.004), (0.010, 0.006)) + crook] if lower_share > 0.1 else []
        return [self.piece(f"sleeve {side}", shapes, frames, details=details, folds=folds)]

    def _pelvis(self, side: int) -> Points:
        """The half of the seat on one side of the seam that shows, from the waist to the crotch."""
        body = self.body
        heights = np.linspace(WAIST_Y, CROTCH_Y, 8)
        left, right = body.outline(heights, self.garment.ease)
        seam = np.array([body.surface(0.0, float(y), self.garment.ease)[0] for y in heights])
        rightward = (side == 1) == body.faces_viewer
        # Below the hips the seat rounds off into the leg; seen from the side it would end in a corner.
        (hip_x, hip_y), (knee_x, knee_y), _ = body.project(body.leg(side))
        reach = float(body.leg_widths()[0]) + 0.004
        thigh = np.interp(heights, [hip_y, knee_y], [hip_x, knee_x]) + (reach if rightward else -reach)
        rounded = np.clip((heights - 0.465) / 0.06, 0, 1)
        if rightward:
            return across(right + rounded * np.minimum(0, thigh - right), seam, heights)
        return across(left + rounded * np.maximum(0, thigh - left), seam, heights)

    def leg(self, side: int) -> Piece:
        """One trouser leg with its half of the seat."""
        garment, body = self.garment, self.body
        joints = body.project(body.leg(side))
        hip, knee, ankle = joints
        bare = body.leg_widths()
        stations = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
        extra = {"slim": (0.003, 0.003, 0.004, 0.003, 0.007), "straight": (0.004, 0.006, 0.013, 0.016, 0.030),
                 "wide": (0.005, 0.012, 0.028, 0.042, 0.064)}[garment.cut]  # fmt: skip
        widths = bare + np.array(extra)
        if garment.kind in ("shorts", "romper"):
            # Shorts end within the first two fifths of the leg, where they must have spread already.
            stations = np.array([0.0, 0.06, 0.14, 0.25, 0.5])
            spread = {"slim": 0.005, "straight": 0.010, "wide": 0.017}[garment.cut]
            widths = np.interp(stations, [0, 0.25, 0.5], bare[:3]) + spread * np.array([0.3, 0.6, 1.0, 1.1, 1.3])
        elif garment.kind == "leggings":
            widths = bare + 0.0025
        share = float(np.clip((self.hem - HIP_Y) / (0.945 - HIP_Y), 0.05, 1.0))
        path = along(spline(joints, 8), share)
        halves = np.interp(np.linspace(0, share, len(path)), stations, widths)
        # The leg grows out of the seat without a step.
        seat_left, seat_right = body.outline(np.array([0.435, 0.465]), garment.ease)
        start = np.stack([hip + vec(0.0, y - HIP_Y) for y in (0.435, 0.465)])
        room = np.minimum(start[:, 0] - seat_left, seat_right - start[:, 0])
        shape = tube(np.concatenate([start, path]), np.concatenate([np.minimum(room, halves[0]), halves]))
        cloth_x = (0.049 if body.woman else 0.048) * (side if body.faces_viewer else -side)
        frame = _along_limb(hip, ankle, (cloth_x, HIP_Y), squeeze=max(0.6, abs(body.cos)))
        seat = replace(frame, turn=0.0)
        folds = [
            points((-0.020, -0.012), (0.006, -0.004)) + knee,
            points((0.018, 0.012), (-0.004, 0.020)) + knee,
            points((0.0, 0.045), (0.016 * np.sign(hip[0] or 1.0), 0.032)) + hip,
        ]
        if garment.cut == "wide" and self.hem > 0.7:
            folds.append(np.stack([(knee + hip) / 2, knee, path[-1] - (0, 0.01)]))
        details = []
        if garment.kind in ("jeans", "shorts") or garment.pattern.kind == "denim":
            details.append(Detail(_across(path, np.interp(share, stations, widths) - 0.001, 0.009), self.trim, 0.003))
        if body.faces_viewer and garment.cloth_type == LOWER and garment.kind != "leggings":
            left, right = body.outline(np.array([0.425, 0.465]), garment.ease)
            edge = right if side == 1 else left
            pocket = points((edge[0] - side * 0.030 * max(0.3, body.cos), 0.412), (edge[1] - side * 0.004, 0.468))
            details.append(Detail(pocket, shaded(self.colour, 0.74), 0.003))
        shapes = [self._pelvis(side), shape]
        return self.piece(f"leg {side}", shapes, [seat, frame], folds=folds, details=details, relief=0.011)

    def belt(self) -> Piece:
        """A belt with a label and a colour of its own, over the waistband."""
        buckle = []
        if self.body.cos > 0.3:
            middle = self.body.surface(0.0, WAIST_Y + 0.005, 0.006)
            buckle = [Detail(disc(middle, 0.009, 0.008, 10), (214, 188, 120))]
        return Piece("belt", BELT_LABEL, [self._band()], (94, 62, 44), relief=0.004, details=buckle)

    def _band(self) -> Points:
        heights = np.array([WAIST_Y - 0.004, WAIST_Y + 0.014])
        return across(*self.body.outline(heights, self.garment.ease + 0.002), heights)

    def skirt(self) -> Piece:
        """A skirt from the waist, wide enough to hide both legs."""
        garment, body, hem = self.garment, self.body, self.hem
        fall = hem - WAIST_Y
        flare = {"pencil": 0.02, "a-line": 0.20, "pleated": 0.17, "flared": 0.30}[garment.cut]
        hips, _, sway, forward = (float(value) for value in body.section(0.475))
        grow = flare * fall if fall < 0.35 else flare * (0.35 + 0.35 * (fall - 0.35))
        half = float(body.span(hips + grow, 0.078 + 0.8 * grow)) + garment.ease
        # Legs that stand apart push the hem out.
        legs = (body.project(body.leg(side)) for side in (1, -1))
        at_hem = np.array([np.interp(hem, joints[:, 1], joints[:, 0]) for joints in legs])
        thigh = float(np.interp(hem, [0.49, 0.72, 0.95], [0.05, 0.036, 0.022])) * body.girth + 0.006
        centre = sway * body.cos + forward * body.sin * 0.4 + 0.5 * float(at_hem.mean() - sway * body.cos) * 0.5
        left_hem = min(centre - half, float(at_hem.min()) - thigh)
        right_hem = max(centre + half, float(at_hem.max()) + thigh)
        heights = np.linspace(WAIST_Y, hem, 14)
        left, right = body.outline(np.minimum(heights, 0.49), garment.ease + 0.003)
        # Cloth hangs straight from the waist to the hem wherever the hips do not push it out.
        share = (heights - WAIST_Y) / fall
        below = np.clip((heights - 0.49) / max(0.02, hem - 0.49), 0, 1)
        left = np.minimum(left[0] + share * (left_hem - left[0]), left + below * np.maximum(0, left_hem - left))
        right = np.maximum(right[0] + share * (right_hem - right[0]), right + below * np.minimum(0, right_hem - right))
        left_hem, right_hem = float(left[-1]), float(right[-1])
        dip = 0.006 + 0.05 * max(0.0, right_hem - left_hem - 0.2)
        bottom = spline(points((left_hem, hem), ((left_hem + right_hem) / 2, hem + dip), (right_hem, hem)), 6)
        edges = across(left, right, heights)
        shape = np.concatenate([edges[:14], bottom, edges[14:]])
        places = {"pleated": np.linspace(0.08, 0.92, 9), "pencil": np.array([0.5])}
        folds = []
        for place in places.get(garment.cut, np.array([0.18, 0.36, 0.60, 0.80])):
            start = (left[2] + place * (right[2] - left[2]), 0.44 + (0.05 if garment.cut != "pleated" else 0))
            end = (left_hem + place * (right_hem - left_hem), hem - 0.004 + dip * (1 - (2 * place - 1) ** 2))
            folds.append(points(start, end))
        fly = [Detail(np.stack([body.surface(0.0, y, 0.004) for y in (0.41, 0.5)]), self.trim, 0.004)]
        details = fly if garment.pattern.kind == "denim" else []
        return self.piece("skirt", [shape], folds=folds, details=details, relief=0.018)

    def below(self) -> list[Piece]:
        """Everything from the waist down."""
        pieces = [self.skirt()] if self.garment.skirted else [self.leg(side) for side in self.body.far_and_near()]
        if self.garment.cloth_type == LOWER:
            pieces.append(Piece(f"{self.name} waistband", self.label, [self._band()], self.trim, relief=0.004))
        return pieces

    def above(self) -> list[Piece]:
        """Everything around the torso, without the sleeves."""
        garment = self.garment
        hangs = garment.cloth_type == UPPER and not self.tucked
        pieces = self.torso(garment.length if hangs else WAIST_Y + 0.012)
        return [*pieces, self.belt()] if garment.cloth_type == FULL and garment.belted else pieces


def _along_limb(start: Vector, end: Vector, cloth: tuple[float, float], squeeze: float = 1.0) -> Frame:
    """Cloth that runs along a limb from picture point ``start`` to ``end``."""
    way = end - start
    return Frame((float(start[0]), float(start[1])), cloth, float(np.arctan2(-way[0], way[1])), squeeze)


def _across(path: Points, half_width: float, before: float) -> Points:
    """A line across a limb, ``before`` body units from the end of its ``path``."""
    way = (path[-1] - path[-2]) / max(1e-6, float(np.hypot(*(path[-1] - path[-2]))))
    aside = np.array([way[1], -way[0]]) * half_width
    middle = path[-1] - way * before
    return np.stack([middle - aside, middle + aside])
