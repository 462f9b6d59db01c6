"""Colours and patterns of cloth, and the textures that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from deepfashion_training.embedded.painting import TEXTURE_HALF, Colour, Points, disc, points, shaded, star, vec

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


def distance(first: str, second: str) -> float:
    """How different two palette colours look, 0 to about 300: RGB distance with green weighted as eyes do."""
    (r, g, b), (x, y, z) = PALETTE[first], PALETTE[second]
    return math.sqrt(0.7 * (r - x) ** 2 + 1.3 * (g - y) ** 2 + 0.6 * (b - z) ** 2)


#: Least and largest distance between the repeats of each kind of pattern, body units.
_PITCHES = {
    "horizontal": (0.058, 0.122), "vertical": (0.051, 0.093), "diagonal": (0.061, 0.116), "dots": (0.065, 0.112),
    "check": (0.075, 0.129), "plaid": (0.102, 0.170), "leaves": (0.105, 0.153), "stars": (0.099, 0.153),
    "flowers": (0.105, 0.156),
}  # fmt: skip


def weighted(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One of the names, each as often as its weight says."""
    return str(rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values())))


def random_pattern(
    rng: np.random.Generator,
    kinds: dict[str, float],
    colours: tuple[str, ...] = CLOTH_COLOURS,
    unlike: str | None = None,
) -> Pattern:
    """A pattern of one of ``kinds``, given with their weights; its ground is visibly different from ``unlike``."""
    kind = weighted(rng, kinds)
    grounds = [name for name in colours if unlike is None or distance(name, unlike) > 70]
    base = str(rng.choice(grounds or list(colours)))
    others = [name for name in CLOTH_COLOURS if distance(name, base) > 110]
    second, third = (str(name) for name in rng.choice(others, 2, replace=False))
    if kind in ("horizontal", "vertical", "diagonal", "dots") and rng.random() < 0.35:
        light = [name for name in ("white", "ivory", "black", "navy") if name in others]
        second = light[0] if light else second
    pitch = float(rng.uniform(*_PITCHES.get(kind, (0.05, 0.06))))
    share = float(rng.uniform(0.3, 0.52))
    return Pattern(kind, base, second, third, pitch, share, str(rng.choice(MOTIFS)), int(rng.integers(1 << 30)))


class _Sheet:
    """A drawing surface in body units: x from -TEXTURE_HALF, y from ``top``."""

    def __init__(self, top: float, bottom: float, scale: float, ground: Colour) -> None:
        self.scale, self.top, self.bottom = scale, top, bottom
        self.image = Image.new("RGB", (round(2 * TEXTURE_HALF * scale), max(2, round((bottom - top) * scale))), ground)
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, shape: Points, colour: Colour) -> None:
        placed = (shape + np.array([TEXTURE_HALF, -self.top])) * self.scale
        self.draw.polygon(placed.ravel().tolist(), fill=colour)

    def band(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        left, right = (round((x + TEXTURE_HALF) * self.scale) for x in (x0, x1))
        upper, lower = (round((y - self.top) * self.scale) for y in (y0, y1))
        self.draw.rectangle((left, upper, max(left, right - 1), max(upper, lower - 1)), fill=colour)

    def stamp(self, shapes: list[tuple[Points, Colour]], radius: float) -> tuple[Image.Image, Image.Image]:
        """Polygons around (0, 0) as a small picture and its mask, to be set many times."""
        side = 2 * max(2, round(radius * self.scale * 1.1)) + 1
        picture, mask = Image.new("RGB", (side, side)), Image.new("1", (side, side))
        for shape, colour in shapes:
            corners = (shape * self.scale + side / 2).ravel().tolist()
            ImageDraw.Draw(picture).polygon(corners, fill=colour)
            ImageDraw.Draw(mask).polygon(corners, fill=1)
        return picture, mask

    def set(self, stamp: tuple[Image.Image, Image.Image], x: float, y: float) -> None:
        half = stamp[0].width // 2
        corner = (round((x + TEXTURE_HALF) * self.scale) - half, round((y - self.top) * self.scale) - half)
        self.image.paste(stamp[0], corner, stamp[1])

    def grid(self, pitch: float) -> list[tuple[float, float]]:
        """Centres of a grid around the middle of the body, every other row half a step aside."""
        centres = []
        for row in range(int(self.top / pitch) - 1, int(self.bottom / pitch) + 2):
            aside = 0.5 if row % 2 else 0.0
            for column in range(int(-TEXTURE_HALF / pitch) - 1, int(TEXTURE_HALF / pitch) + 2):
                centres.append(((column + aside) * pitch, row * pitch))
        return centres


def texture(pattern: Pattern, top: float, bottom: float, scale: float, seam: float) -> Image.Image:
    """The cloth between body heights ``top`` and ``bottom`` as an RGB image, ``scale`` pixels to a body height.

    Its width is ``2 * TEXTURE_HALF`` body heights. ``seam`` is the body height where colour blocks meet.
    """
    sheet = _Sheet(top, bottom, scale, pattern.colour)
    second, third = PALETTE[pattern.second], PALETTE[pattern.third]
    pitch, half = pattern.pitch, TEXTURE_HALF
    thick = pitch * pattern.share
    rows = (np.arange(np.floor(top / pitch) - 1, np.ceil(bottom / pitch) + 2) * pitch).tolist()
    columns = (np.arange(-np.ceil(half / pitch) - 1, np.ceil(half / pitch) + 2) * pitch).tolist()
    if pattern.kind == "horizontal":
        for y in rows:
            sheet.band(-half, y, half, y + thick, second)
    elif pattern.kind == "vertical":
        for x in columns:
            sheet.band(x - thick / 2, top, x + thick / 2, bottom, second)
    elif pattern.kind == "diagonal":
        rise, wide = bottom - top, pitch * 1.3 * pattern.share
        for x in np.arange(-half - rise - pitch, half + pitch, pitch * 1.3):
            sheet.polygon(points((x, bottom), (x + wide, bottom), (x + wide + rise, top), (x + rise, top)), second)
    elif pattern.kind == "dots":
        radius = pitch * (0.18 + 0.22 * pattern.share)
        dot = sheet.stamp([(disc((0.0, 0.0), radius), second)], radius)
        for x, y in sheet.grid(pitch):
            sheet.set(dot, x, y)
    elif pattern.kind in ("check", "plaid"):
        return _weave(sheet, pattern, rows, columns)
    elif pattern.kind in ("leaves", "stars", "flowers"):
        _scatter(sheet, pattern)
    elif pattern.kind == "print":
        _motif(sheet, pattern.motif, second, third)
    elif pattern.kind == "block":
        sheet.band(-half, seam, half, bottom, second)
        sheet.band(-half, seam - 0.012, half, seam + 0.012, third)
    elif pattern.kind == "denim":
        for x in np.arange(-half, half, 0.011).tolist():
            sheet.band(x, top, x + 0.004, bottom, shaded(pattern.colour, 0.93))
    return sheet.image


def _weave(sheet: _Sheet, pattern: Pattern, rows: list[float], columns: list[float]) -> Image.Image:
    """Crossing bands: half-way colours where only one thread shows."""
    second, third = PALETTE[pattern.second], PALETTE[pattern.third]
    thick = pattern.pitch * (0.5 if pattern.kind == "check" else 0.36)
    fine = max(0.006, pattern.pitch * 0.07) if pattern.kind == "plaid" else 0.0
    # Each thread is 0 ground, 1 band or 2 fine line; the table is for both threads' kinds.
    threads = []
    for marks, start, length in ((rows, sheet.top, sheet.image.height), (columns, -TEXTURE_HALF, sheet.image.width)):
        place = (np.arange(length) + 0.5) / sheet.scale + start
        phase = np.mod(place - marks[0] + thick / 2, pattern.pitch)
        on_line = np.abs(phase - thick / 2 - pattern.pitch / 2) < fine / 2
        threads.append(np.where(phase < thick, 1, np.where(on_line, 2, 0)).astype(np.uint8))
    faint = tuple(round(x * 0.5 + y * 0.5) for x, y in zip(pattern.colour, second, strict=True))
    table = [pattern.colour, faint, third, faint, second, third, third, third, third]
    woven = Image.fromarray(threads[0][:, None] * np.uint8(3) + threads[1][None, :])
    woven.putpalette(np.array(table, np.uint8).tobytes())
    return woven.convert("RGB")


def _scatter(sheet: _Sheet, pattern: Pattern) -> None:
    """Motifs on a loose grid, each turned its own way."""
    second, third = PALETTE[pattern.second], PALETTE[pattern.third]
    rng = np.random.default_rng(pattern.seed)
    size = pattern.pitch * 0.40
    stamps = []
    for turn in rng.uniform(0, 2 * np.pi, 8).tolist():
        ink, heart = (second, third) if rng.random() < 0.7 else (third, second)
        if pattern.kind == "stars":
            shapes = [(star((0.0, 0.0), size, turn=turn), ink)]
        elif pattern.kind == "flowers":
            petals = disc((0.0, 0.0), 0.55 * size, count=5)
            shapes = [(disc(petal, size * 0.42), ink) for petal in petals]
            shapes.append((disc((0.0, 0.0), size * 0.30), heart))
        else:
            way = np.linspace(-1, 1, 9)
            leaf = np.stack([way, 0.42 * (1 - way**2)], axis=1)
            leaf = np.concatenate([leaf, leaf[::-1] * (1, -1)])
            cos, sin = np.cos(turn), np.sin(turn)
            shapes = [(leaf @ np.array([[cos, sin], [-sin, cos]]) * size, ink)]
        stamps.append(sheet.stamp(shapes, size))
    grid = sheet.grid(pattern.pitch)
    for (x, y), kind in zip(grid, rng.integers(0, len(stamps), len(grid)).tolist(), strict=True):
        sheet.set(stamps[kind], x, y)


def _motif(sheet: _Sheet, motif: str, second: Colour, third: Colour) -> None:
    """One picture on the chest."""
    centre, radius = np.array([0.0, 0.285]), 0.052
    if motif == "star":
        sheet.polygon(star(centre, radius), second)
    elif motif == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        sheet.polygon(np.stack([np.sin(t) ** 3, y], axis=1) * radius + centre, second)
    elif motif == "sun":
        sheet.polygon(star(centre, radius, tips=12, inner=0.68), third)
        sheet.polygon(disc(centre, radius * 0.58), second)
    elif motif == "flower":
        for petal in disc(centre, 0.6 * radius, count=6):
            sheet.polygon(disc(petal, radius * 0.38), second)
        sheet.polygon(disc(centre, radius * 0.32), third)
    elif motif == "mountain":
        sheet.polygon(disc(centre + vec(0.4 * radius, -0.4 * radius), radius * 0.34), third)
        ridge = points((-1.1, 0.7), (-0.45, -0.35), (-0.05, 0.2), (0.35, -0.15), (1.1, 0.7))
        sheet.polygon(ridge * radius + centre, second)
    else:
        for share, colour in ((1.0, second), (0.62, third), (0.30, second)):
            sheet.polygon(disc(centre, radius * share), colour)
