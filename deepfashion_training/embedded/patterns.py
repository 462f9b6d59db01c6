"""Colours and patterns of cloth, and the textures that they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from deepfashion_training.embedded.body import Colour
from deepfashion_training.embedded.shapes import Points, disc, points, star, vec

#: Cloth colours by the name that captions use.
PALETTE: dict[str, Colour] = {
    "white": (246, 244, 240), "ivory": (240, 230, 208), "black": (46, 45, 50), "charcoal": (84, 88, 96),
    "grey": (160, 163, 168), "silver": (206, 209, 213), "beige": (216, 196, 166), "camel": (190, 146, 92),
    "brown": (120, 80, 56), "chocolate": (84, 56, 46), "rust": (188, 88, 48), "orange": (236, 134, 52),
    "peach": (246, 182, 146), "coral": (240, 112, 96), "red": (208, 48, 52), "burgundy": (128, 38, 58),
    "pink": (244, 164, 188), "magenta": (206, 58, 130), "plum": (122, 64, 122), "purple": (112, 78, 176),
    "lavender": (188, 172, 226), "navy": (42, 56, 104), "blue": (52, 104, 196), "sky blue": (126, 184, 232),
    "teal": (32, 128, 136), "turquoise": (76, 194, 194), "mint": (164, 222, 192), "green": (58, 148, 84),
    "forest green": (38, 94, 68), "olive": (124, 128, 66), "lime": (172, 208, 76), "mustard": (214, 166, 44),
    "yellow": (248, 216, 88), "denim blue": (86, 122, 170), "light denim": (148, 182, 214), "dark denim": (52, 72, 112),
}  # fmt: skip
DENIMS = ("denim blue", "light denim", "dark denim")
CLOTH_COLOURS = tuple(name for name in PALETTE if name not in DENIMS)
SUIT_COLOURS = ("black", "charcoal", "grey", "navy", "beige", "brown", "burgundy", "forest green")

#: How captions name each pattern.
PATTERN_WORDS: dict[str, str] = {
    "plain": "pure color", "horizontal": "horizontal stripe", "vertical": "vertical stripe",
    "diagonal": "diagonal stripe", "dots": "dotted", "check": "checked", "plaid": "plaid",
    "leaves": "leaf", "stars": "star", "flowers": "floral", "print": "graphic", "block": "color block",
    "denim": "denim",
}  # fmt: skip
MOTIFS = ("star", "heart", "sun", "flower", "mountain", "ring")

#: Width of every texture in body units: its middle is the middle of the body.
TEXTURE_HALF = 0.46


@dataclass(frozen=True)
class Pattern:
    """What is printed, woven or sewn into a piece of cloth."""

    kind: str  # a key of PATTERN_WORDS
    base: str  # names in PALETTE
    second: str
    third: str
    pitch: float  # distance between repeats, body units
    share: float  # share of a repeat that the second colour fills, 0 to 1
    motif: str = "star"
    seed: int = 0

    @property
    def colour(self) -> Colour:
        """RGB of the ground."""
        return PALETTE[self.base]

    @property
    def plain(self) -> bool:
        """Whether one flat colour is the whole pattern."""
        return self.kind == "plain"


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour made darker (``factor`` below 1) or mixed with white (above 1; 2 is white)."""
    if factor <= 1:
        return tuple(round(channel * factor) for channel in colour)  # type: ignore[return-value]
    return tuple(round(channel + (255 - channel) * (factor - 1)) for channel in colour)  # type: ignore[return-value]


def distance(first: str, second: str) -> float:
    """How different two palette colours look, 0 to about 300: RGB distance with green weighted as eyes do."""
    a, b = np.array(PALETTE[first], float), np.array(PALETTE[second], float)
    return float(np.sqrt((((a - b) ** 2) * (0.7, 1.3, 0.6)).sum()))


def random_pattern(
    rng: np.random.Generator,
    kinds: tuple[str, ...],
    weights: tuple[float, ...],
    colours: tuple[str, ...] = CLOTH_COLOURS,
    unlike: str | None = None,
) -> Pattern:
    """A pattern of one of ``kinds``, its ground at least visibly different from the palette colour ``unlike``."""
    kind = str(rng.choice(kinds, p=np.array(weights) / sum(weights)))
    grounds = [name for name in colours if unlike is None or distance(name, unlike) > 70]
    base = str(rng.choice(grounds or list(colours)))
    others = [name for name in CLOTH_COLOURS if distance(name, base) > 110]
    second, third = (str(name) for name in rng.choice(others, 2, replace=False))
    if kind in ("horizontal", "vertical", "diagonal", "dots") and rng.random() < 0.35:
        light = [name for name in ("white", "ivory", "black", "navy") if name in others]
        second = light[0] if light else second
    low, high = {
        "horizontal": (0.034, 0.072), "vertical": (0.030, 0.055), "diagonal": (0.036, 0.068), "dots": (0.038, 0.066),
        "check": (0.044, 0.076), "plaid": (0.060, 0.100), "leaves": (0.062, 0.090), "stars": (0.058, 0.090),
        "flowers": (0.062, 0.092),
    }.get(kind, (0.05, 0.06))  # fmt: skip
    return Pattern(
        kind=kind,
        base=base,
        second=second,
        third=third,
        pitch=float(rng.uniform(low, high)),
        share=float(rng.uniform(0.3, 0.52)),
        motif=str(rng.choice(MOTIFS)),
        seed=int(rng.integers(1 << 30)),
    )


class _Sheet:
    """A drawing surface in body units: x from -TEXTURE_HALF, y from ``top``."""

    def __init__(self, top: float, bottom: float, scale: float, ground: Colour) -> None:
        self.scale, self.top, self.bottom = scale, top, bottom
        self.image = Image.new("RGB", (round(2 * TEXTURE_HALF * scale), max(2, round((bottom - top) * scale))), ground)
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, shape: Points, colour: Colour) -> None:
        placed = (shape + vec(TEXTURE_HALF, -self.top)) * self.scale
        self.draw.polygon(placed.ravel().tolist(), fill=colour)

    def band(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon(points((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour)

    def grid(self, pitch: float, stagger: bool) -> list[tuple[float, float]]:
        """Centres of a grid around the middle of the body, every other row half a step aside."""
        centres = []
        for row in range(int(np.floor(self.top / pitch)) - 1, int(np.ceil(self.bottom / pitch)) + 2):
            aside = 0.5 if stagger and row % 2 else 0.0
            for column in range(int(-TEXTURE_HALF / pitch) - 2, int(TEXTURE_HALF / pitch) + 2):
                centres.append(((column + aside) * pitch, row * pitch))
        return centres


def texture(pattern: Pattern, top: float, bottom: float, scale: float, chest: float = 0.285) -> Image.Image:
    """The cloth between body heights ``top`` and ``bottom`` as an RGB image, ``scale`` pixels to a body height.

    Its width is ``2 * TEXTURE_HALF`` body heights. ``chest`` is the body height of a graphic print's centre.
    """
    sheet = _Sheet(top, bottom, scale, pattern.colour)
    second, third = PALETTE[pattern.second], PALETTE[pattern.third]
    pitch, half = pattern.pitch, TEXTURE_HALF
    thick = pitch * pattern.share
    marks = np.arange(np.floor(top / pitch) - 1, np.ceil(bottom / pitch) + 2) * pitch
    across = np.arange(-np.ceil(half / pitch) - 1, np.ceil(half / pitch) + 2) * pitch
    if pattern.kind == "horizontal":
        for y in marks:
            sheet.band(-half, y, half, y + thick, second)
    elif pattern.kind == "vertical":
        for x in across:
            sheet.band(x - thick / 2, top, x + thick / 2, bottom, second)
    elif pattern.kind == "diagonal":
        rise = bottom - top
        step = pitch * 1.3
        for x in np.arange(-half - rise - pitch, half + pitch, step):
            wide = step * pattern.share
            sheet.polygon(points((x, bottom), (x + wide, bottom), (x + wide + rise, top), (x + rise, top)), second)
    elif pattern.kind == "dots":
        for centre in sheet.grid(pitch, stagger=True):
            sheet.polygon(disc(centre, pitch * (0.18 + 0.22 * pattern.share), count=14), second)
    elif pattern.kind in ("check", "plaid"):
        _weave(sheet, pattern, marks, across, second, third)
    elif pattern.kind in ("leaves", "stars", "flowers"):
        _scatter(sheet, pattern, second, third)
    elif pattern.kind == "print":
        _motif(sheet, pattern.motif, (0.0, chest), 0.052, second, third)
    elif pattern.kind == "block":
        middle = top + (bottom - top) * (0.40 + 0.3 * (pattern.share - 0.3))
        sheet.band(-half, middle, half, bottom, second)
        sheet.band(-half, middle - 0.012, half, middle + 0.012, third)
    elif pattern.kind == "denim":
        for x in np.arange(-half, half, 0.011):
            sheet.band(x, top, x + 0.004, bottom, shaded(pattern.colour, 0.93))
    return sheet.image


def _mix(a: Colour, b: Colour, weight: float) -> Colour:
    return tuple(round(x * (1 - weight) + y * weight) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _weave(sheet: _Sheet, pattern: Pattern, marks: Points, across: Points, second: Colour, third: Colour) -> None:
    """Crossing bands; half-way colours where only one thread shows."""
    half, pitch = TEXTURE_HALF, pattern.pitch
    thick = pitch * (0.5 if pattern.kind == "check" else 0.36)
    faint = _mix(pattern.colour, second, 0.5)
    for y in marks:
        sheet.band(-half, y, half, y + thick, faint)
    for x in across:
        sheet.band(x - thick / 2, sheet.top, x + thick / 2, sheet.bottom, faint)
    for y in marks:
        for x in across:
            sheet.band(x - thick / 2, y, x + thick / 2, y + thick, second)
    if pattern.kind == "plaid":
        fine = max(0.006, pitch * 0.07)
        for y in marks:
            sheet.band(-half, y + pitch * 0.68, half, y + pitch * 0.68 + fine, third)
        for x in across:
            sheet.band(x + pitch / 2 - fine / 2, sheet.top, x + pitch / 2 + fine / 2, sheet.bottom, third)


def _scatter(sheet: _Sheet, pattern: Pattern, second: Colour, third: Colour) -> None:
    """Motifs on a loose grid, each turned its own way."""
    rng = np.random.default_rng(pattern.seed)
    size = pattern.pitch * 0.36
    for x, y in sheet.grid(pattern.pitch, stagger=True):
        turn = float(rng.uniform(0, 2 * np.pi))
        ink = second if rng.random() < 0.7 else third
        if pattern.kind == "stars":
            sheet.polygon(star((x, y), size, turn=turn), ink)
        elif pattern.kind == "flowers":
            for petal in range(5):
                angle = turn + petal * 2 * np.pi / 5
                spot = (x + 0.55 * size * np.cos(angle), y + 0.55 * size * np.sin(angle))
                sheet.polygon(disc(spot, size * 0.42, count=10), ink)
            sheet.polygon(disc((x, y), size * 0.30, count=10), third if ink == second else second)
        else:
            axis = np.array([np.cos(turn), np.sin(turn)])
            side = np.array([-axis[1], axis[0]]) * 0.42
            leaf = np.stack([axis, 0.3 * axis + side, -axis, 0.3 * axis - side])
            sheet.polygon(leaf * size + (x, y), ink)


def _motif(
    sheet: _Sheet, motif: str, centre: tuple[float, float], radius: float, second: Colour, third: Colour
) -> None:
    """One picture on the chest."""
    x, y = centre
    if motif == "star":
        sheet.polygon(star(centre, radius), second)
    elif motif == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        heart = np.stack(
            [np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], axis=1
        )
        sheet.polygon(heart * radius + centre, second)
    elif motif == "sun":
        sheet.polygon(star(centre, radius, tips=12, inner=0.68), third)
        sheet.polygon(disc(centre, radius * 0.58), second)
    elif motif == "flower":
        for petal in range(6):
            angle = petal * np.pi / 3
            spot = (x + 0.6 * radius * np.cos(angle), y + 0.6 * radius * np.sin(angle))
            sheet.polygon(disc(spot, radius * 0.38), second)
        sheet.polygon(disc(centre, radius * 0.32), third)
    elif motif == "mountain":
        sheet.polygon(disc((x + 0.4 * radius, y - 0.4 * radius), radius * 0.34), third)
        ridge = points((-1.1, 0.7), (-0.45, -0.35), (-0.05, 0.2), (0.35, -0.15), (1.1, 0.7))
        sheet.polygon(ridge * radius + centre, second)
    else:
        sheet.polygon(disc(centre, radius), second)
        sheet.polygon(disc(centre, radius * 0.62), third)
        sheet.polygon(disc(centre, radius * 0.30), second)
