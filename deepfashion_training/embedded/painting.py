"""Plane geometry, and a canvas that paints pieces of a figure, back to front, into a photo and a map of what is where.

Shapes are float64 arrays [N, 2] of (x, y), y downward, in body units: the standing height of a person is 1. They are
drawn at a multiple of the picture's size and averaged down, so that photo edges are smooth; the map takes the middle
sample of each pixel, so that its labels stay whole numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
LabelMap = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Spot = Sequence[float] | npt.NDArray[np.float64]

#: Half width of every texture: its middle is the middle of the body.
TEXTURE_HALF = 0.34


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour made darker (``factor`` below 1) or mixed with white (above 1; 2 is white)."""
    white, kept = max(0.0, factor - 1), min(factor, 1.0)
    red, green, blue = (round(channel * kept + (255 - channel) * white) for channel in colour)
    return red, green, blue


def points(*pairs: Sequence[float]) -> Points:
    """The given (x, y) pairs as an array [N, 2]."""
    return np.asarray(pairs, dtype=np.float64)


def vec(x: float, y: float) -> Points:
    """The step (x, y) as an array [2], to add to points."""
    return np.array([x, y], dtype=np.float64)


def spline(through: Points, steps: int = 6) -> Points:
    """Catmull-Rom curve through three or more points [N, 2], ``steps`` samples per span: [(N - 1) * steps + 1, 2]."""
    padded = np.concatenate([2 * through[:1] - through[1:2], through, 2 * through[-1:] - through[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    before, start, end, after = (padded[i : len(through) - 1 + i, None, :] for i in range(4))
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), through[-1:]])


def along(path: Points, share: float) -> Points:
    """The first ``share`` (0 to 1, by length) of a polyline [N, 2], its end cut exactly there."""
    marks = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    goal = share * marks[-1]
    kept = int(np.searchsorted(marks, goal, side="left"))
    end = [np.interp(goal, marks, path[:, axis]) for axis in (0, 1)]
    return np.concatenate([path[: max(kept, 1)], [end]])


def tube(path: Points, half_widths: Spot, other_half: Spot | None = None) -> Points:
    """Outline of a band around a polyline [N, 2] with the half width given at each of its N points.

    Where ``other_half`` is given, ``half_widths`` holds on the side that is left on the picture when the path runs
    downward, and ``other_half`` on the other; a negative half width lies beyond the path.
    """
    steps = np.gradient(path, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
    normals /= np.maximum(np.hypot(normals[:, 0], normals[:, 1]), 1e-9)[:, None]
    left = np.asarray(half_widths)[:, None]
    right = left if other_half is None else np.asarray(other_half)[:, None]
    return np.concatenate([path + normals * left, (path - normals * right)[::-1]])


@functools.lru_cache(maxsize=32)
def _circle(count: int) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def disc(centre: Spot, rx: float, ry: float | None = None, count: int = 20) -> Points:
    """An ellipse with half axes ``rx`` and ``ry`` (a circle where ``ry`` is None) as ``count`` points."""
    return _circle(count) * (rx, rx if ry is None else ry) + (centre[0], centre[1])


def hull(cloud: Points) -> Points:
    """Convex hull of the points [N, 2], as far as 72 directions tell its corners apart."""
    outermost = (cloud @ _circle(72).T).argmax(axis=0)
    return cloud[outermost[np.flatnonzero(np.diff(outermost, prepend=outermost[-1:]))]]


def hull_of_discs(centres: Iterable[Spot], radii: Iterable[float]) -> Points:
    """Convex hull of circles, given by their centres and radii, as 28 points."""
    middles, reach, ways = np.array(list(centres)), np.array(list(radii)), _circle(28)
    outermost = (middles @ ways.T + reach[:, None]).argmax(axis=0)
    hulled: Points = middles[outermost] + reach[outermost, None] * ways
    return hulled


def star(centre: Spot, radius: float, tips: int = 5, inner: float = 0.45, turn: float = 0.0) -> Points:
    """A star with ``tips`` tips; ``inner`` is the inner radius over the outer one, ``turn`` is in radians."""
    angle = np.arange(2 * tips) * np.pi / tips - np.pi / 2 + turn
    reach = np.where(np.arange(2 * tips) % 2 == 0, radius, radius * inner)
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)


@dataclass(frozen=True)
class Frame:
    """How cloth lies on one polygon: the texture point ``cloth`` at picture point ``at``.

    ``turn`` is the angle in radians from picture to cloth axes, ``squeeze`` how much narrower the cloth looks.
    """

    at: tuple[float, float]
    cloth: tuple[float, float]
    turn: float = 0.0
    squeeze: float = 1.0


@dataclass(frozen=True)
class Cloth:
    """A texture image whose first row is at body height ``top``, ``scale`` pixels to a body height."""

    image: Image.Image
    top: float
    scale: float


@dataclass(frozen=True)
class Detail:
    """A small shape drawn on a piece once it is painted: filled, or a line of ``width`` body units."""

    shape: Points
    colour: Colour
    width: float = 0.0  # 0 fills


@dataclass
class Piece:
    """One part of the figure: a union of polygons with one label."""

    name: str
    label: int
    shapes: list[Points]
    colour: Colour
    relief: float = 0.010  # width of the shadow on the side away from the light
    details: list[Detail] = field(default_factory=list)
    group: str = ""  # no line is drawn between neighbours of one group
    folds: list[Points] = field(default_factory=list)
    cloth: Cloth | None = None
    frames: list[Frame] = field(default_factory=list)  # one per shape where there is cloth


@dataclass(frozen=True)
class Window:
    """The part of a picture that a figure fills, and where body units lie in it.

    ``left``, ``top``, ``width``, ``height`` are pixels of the picture, ``scale`` pixels to a body height,
    ``origin`` the pixel (x, y) of body point (0, 0) in the window, ``factor`` the samples per pixel and axis.
    """

    left: int
    top: int
    width: int
    height: int
    scale: float
    origin: tuple[float, float]
    factor: int

    @classmethod
    def around(cls, pieces: list[Piece], size: tuple[int, int], scale: float, origin: tuple[float, float]) -> Window:
        """The window that holds all of ``pieces`` and their soft edges, within ``size`` (height, width)."""
        corners = np.concatenate([shape for piece in pieces for shape in piece.shapes]) * scale + origin
        margin = 0.025 * scale + 2
        left, top = (max(0, int(value - margin)) for value in corners.min(axis=0))
        right, bottom = (int(value + margin) for value in corners.max(axis=0))
        right, bottom = max(left + 1, min(right, size[1])), max(top + 1, min(bottom, size[0]))
        moved = (origin[0] - left, origin[1] - top)
        return cls(left, top, right - left, bottom - top, scale, moved, supersampling(size[0]))

    def placed(self, shape: Points) -> list[float]:
        """Corners of a shape in samples, as ``ImageDraw`` takes them: x, y, x, y and so on."""
        corners: list[float] = ((shape * self.scale + self.origin) * self.factor).ravel().tolist()
        return corners

    def sample(self, image: Image.Image) -> Image.Image:
        """The middle sample of each pixel of an image in samples."""
        # Scaling down by nearest neighbour takes exactly that one.
        return image.resize((self.width, self.height), Image.Resampling.NEAREST)

    def spread(self, image: Image.Image, size: tuple[int, int]) -> LabelMap:
        """An image of the window as uint8 [H, W] of the whole picture, 0 outside."""
        whole = np.zeros(size, np.uint8)
        whole[self.top : self.top + self.height, self.left : self.left + self.width] = np.asarray(image)
        return whole

    def silhouettes(self, shapes: list[tuple[Points, int]]) -> Image.Image:
        """Shapes filled with their values in painter's order, one sample per pixel."""
        image = Image.new("L", (self.width * self.factor, self.height * self.factor), 0)
        draw = ImageDraw.Draw(image)
        for shape, value in shapes:
            draw.polygon(self.placed(shape), fill=value)
        return self.sample(image)


def supersampling(height: int) -> int:
    """How many samples a pixel has along each axis: enough that thin lines survive on small pictures."""
    return 4 if height <= 192 else 3 if height <= 256 else 2


class Canvas:
    """``picture`` (RGB), ``pieces`` painted on the ``window`` of it, and the map of what is where."""

    def __init__(self, picture: Image.Image, window: Window, pieces: list[Piece]) -> None:
        self.window, self.pieces = window, pieces
        self.scale, self.factor, self.origin = window.scale, window.factor, np.array(window.origin)
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        large = (window.width * self.factor, window.height * self.factor)
        self._colours = picture.crop(box).resize(large, Image.Resampling.NEAREST)
        self._ids = Image.new("L", large, 0)  # 0 where no piece is, otherwise its place in ``pieces`` from 1 on
        self._light = Image.new("L", (window.width, window.height), 255)
        for number, piece in enumerate(pieces, 1):
            self._paint(piece, number)
        picture.paste(self._finished(outlined=picture.height > 168), box[:2])

    def _paint(self, piece: Piece, number: int) -> None:
        draw, draw_ids = ImageDraw.Draw(self._colours), ImageDraw.Draw(self._ids)
        for index, shape in enumerate(piece.shapes):
            corners = self.window.placed(shape)
            draw_ids.polygon(corners, fill=number)
            if piece.cloth is None:
                draw.polygon(corners, fill=piece.colour)
            else:
                self._lay(piece.cloth, piece.frames[index], corners)
        self._shade(piece)
        for detail in piece.details:
            if detail.width:
                wide = max(1, round(detail.width * self.scale * self.factor))
                draw.line(self.window.placed(detail.shape), fill=detail.colour, width=wide, joint="curve")
            else:
                draw.polygon(self.window.placed(detail.shape), fill=detail.colour)

    def _lay(self, cloth: Cloth, frame: Frame, corners: list[float]) -> None:
        """Fill one polygon with cloth."""
        xs, ys = corners[0::2], corners[1::2]
        left, top = max(0, int(min(xs))), max(0, int(min(ys)))
        right = min(self._colours.width, int(max(xs)) + 2)
        bottom = min(self._colours.height, int(max(ys)) + 2)
        if right <= left or bottom <= top:
            return
        mask = Image.new("1", (right - left, bottom - top), 0)
        moved = (np.array(corners).reshape(-1, 2) - (left, top)).ravel().tolist()
        ImageDraw.Draw(mask).polygon(moved, fill=1)
        # Pixel of the box -> body units on the picture -> body units on the cloth -> pixel of the texture.
        unit, s = 1.0 / (self.scale * self.factor), cloth.scale
        cos, sin = np.cos(frame.turn), np.sin(frame.turn)
        x0 = (left - self.origin[0] * self.factor) * unit - frame.at[0]
        y0 = (top - self.origin[1] * self.factor) * unit - frame.at[1]
        a, b = cos / frame.squeeze, sin / frame.squeeze
        c = a * x0 + b * y0 + frame.cloth[0] + TEXTURE_HALF
        f = -sin * x0 + cos * y0 + frame.cloth[1] - cloth.top
        matrix = (a * unit * s, b * unit * s, c * s, -sin * unit * s, cos * unit * s, f * s)
        filled = cloth.image.transform(mask.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
        self._colours.paste(filled, (left, top), mask)

    def _shade(self, piece: Piece) -> None:
        """Light from the upper left: a soft shadow on the far side and along the folds."""
        placed = [shape * self.scale + self.origin for shape in piece.shapes]
        corners = np.concatenate(placed)
        left, top = (max(0, int(value)) for value in corners.min(axis=0).tolist())
        right, bottom = (int(value) + 2 for value in corners.max(axis=0).tolist())
        right, bottom = min(right, self.window.width), min(bottom, self.window.height)
        if right <= left or bottom <= top:
            return
        box, corner = (right - left, bottom - top), np.array([left, top])
        mask, light = Image.new("1", box, 0), Image.new("L", box, 214)
        on_mask, on_light = ImageDraw.Draw(mask), ImageDraw.Draw(light)
        aside = corner + np.array([1.0, 0.25]) * (piece.relief * self.scale)
        for shape in placed:
            on_mask.polygon((shape - corner).ravel().tolist(), fill=1)
            on_light.polygon((shape - aside).ravel().tolist(), fill=255)
        for fold in piece.folds:
            line = (fold * self.scale + self.origin - corner).ravel().tolist()
            on_light.line(line, fill=216, width=max(1, round(0.006 * self.scale)))
        self._light.paste(light, (left, top), mask)

    def _edges(self) -> Image.Image:
        """White where pieces of different groups meet, at the picture's size."""
        names = [piece.group or piece.name for piece in self.pieces]
        groups = np.asarray(self._ids.point(_table([names.index(name) + 1 for name in names])))
        edge = np.zeros(groups.shape, bool)
        down, across = groups[1:] != groups[:-1], groups[:, 1:] != groups[:, :-1]
        edge[1:] |= down
        edge[:-1] |= down
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        return Image.fromarray(edge.view(np.uint8) * np.uint8(255)).reduce(self.factor)

    def _finished(self, outlined: bool) -> Image.Image:
        """The window of the photo, shaded and ``outlined``: RGB at the picture's size.

        Small pictures have no outlines: a line of one pixel would be a tenth of a sleeve.
        """
        light = self._light.filter(ImageFilter.GaussianBlur(0.0055 * self.scale))
        edges = self._edges() if outlined else Image.new("L", light.size, 0)
        near = edges.filter(ImageFilter.BoxBlur(0.010 * self.scale))
        light = ImageChops.multiply(light, near.point([255 - min(60, value * 3 // 5) for value in range(256)]))
        # Shadows end where the figure does: the wall behind it and the white of a product shot stay clean.
        figure = self._ids.point([0, *[255] * 255]).reduce(self.factor)
        light = ImageChops.lighter(light, ImageChops.invert(figure))
        strength = 0.46 if self.scale > 200 else 0.38
        light = ImageChops.multiply(light, edges.point([round(255 - value * strength) for value in range(256)]))
        return ImageChops.multiply(self._colours.reduce(self.factor), Image.merge("RGB", (light, light, light)))

    def labels(self, **instead: int) -> Image.Image:
        """Label of the piece that shows at each pixel of the window; ``instead`` gives labels by piece name."""
        labels = [instead.get(piece.name, piece.label) for piece in self.pieces]
        return self.window.sample(self._ids).point(_table(labels))

    def figure(self) -> Image.Image:
        """255 wherever a piece shows in the window."""
        return self.window.sample(self._ids).point([0, *[255] * 255])


def _table(values: list[int]) -> list[int]:
    """What ``Image.point`` makes of the pieces' numbers, where 0 is the background."""
    return [0, *values, *[0] * (255 - len(values))]
